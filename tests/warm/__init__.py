"""Ranks forked from a warm parent work like new processes: ``python -m warm FORKS``, thousands by ``make warm``."""
