"""Callbacks, the events of a Trainer that they receive, and the state that they see."""
