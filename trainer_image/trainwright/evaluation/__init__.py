"""Evaluation: one pass over data, and gathering the results of all ranks."""
