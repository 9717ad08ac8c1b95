"""The operator: turns TrainingJobs into pods that train, and what they report into status."""

__version__ = "0.1.0"
