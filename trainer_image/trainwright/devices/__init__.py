"""Code for particular accelerators: checks, metrics, and the two TPU runtimes; and the seeding of every run."""
