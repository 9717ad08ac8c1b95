"""Hyperparameter search: spaces and objectives, and the search itself by optuna. Imported only when a search starts."""
