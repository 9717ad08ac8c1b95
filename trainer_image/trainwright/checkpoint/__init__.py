"""Checkpoints: what one holds, how it reaches the disk whole, and who may write it."""
