"""Quota that jobs wait for before their pods are created: what is read of it, and what is written to it."""
