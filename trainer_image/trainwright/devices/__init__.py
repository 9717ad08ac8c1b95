"""What only some accelerators need, apart from what every run needs: checks, figures, and the two TPU runtimes."""
