"""The operator: turns TrainingJobs into pods that train, and what they report into status."""

from trainwright import __version__ as __version__
