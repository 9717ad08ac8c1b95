"""The promise of the Trainer, held against the architectures of transformers: ``make sweep``."""
