"""Checkpoints: what they contain, how they are written atomically, and who may write them."""
