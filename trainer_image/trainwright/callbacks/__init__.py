"""Callbacks, the events that a Trainer tells them of, and the state that it shows them."""
