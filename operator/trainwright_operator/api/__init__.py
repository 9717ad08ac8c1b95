"""TrainingJob and AcceleratorPool: every field, how it is checked, what it is called, and what Python makes of it."""
