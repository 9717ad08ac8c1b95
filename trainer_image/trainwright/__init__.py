"""The Trainer: the API of the Hugging Face Trainer on torch and accelerate."""
