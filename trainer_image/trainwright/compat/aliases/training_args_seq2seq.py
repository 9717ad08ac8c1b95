"""``transformers.training_args_seq2seq`` for scripts that change the library alone: a view of the package."""

from trainwright import __getattr__ as __getattr__  # type: ignore[attr-defined]
