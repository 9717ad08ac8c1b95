"""Optimizers that torch does not have: one of our own, those of packages, and what sets some of them apart in a run."""
