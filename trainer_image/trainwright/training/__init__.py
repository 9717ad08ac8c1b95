"""The training loop and what it stands on: optimizers, schedules, losses, precision, preparation."""
