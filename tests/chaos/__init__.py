"""Faults by a seed, for hours if wanted: `make chaos`. A short run of it is in tests/local/test_prove.py."""
