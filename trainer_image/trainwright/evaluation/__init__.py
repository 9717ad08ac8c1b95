"""One pass over data that judges a model, and the gathering of what the ranks saw."""
