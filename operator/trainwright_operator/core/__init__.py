"""The core: what a TrainingJob becomes and what is to be done with it. It plans and touches nothing."""
