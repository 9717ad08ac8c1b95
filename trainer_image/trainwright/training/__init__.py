"""The training loop and its parts: optimizers, schedules, losses, precision, preparation."""
