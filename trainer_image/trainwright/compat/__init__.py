"""For scripts and libraries that were written for Hugging Face's Trainer: its functions and its module names."""
