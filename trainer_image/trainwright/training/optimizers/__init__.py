"""Optimizers that torch does not have: Adafactor, those of other packages, and their special cases in a run."""
