"""In the place of the real package in the pods of tests: starts in milliseconds, and needs no torch."""
