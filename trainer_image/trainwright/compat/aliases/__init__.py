"""Modules that are found under ``trainwright`` itself, by the names that scripts, checkpoints and pods know.

``trainwright.__path__`` leads here after the package's own folder, so ``trainwright.training_args`` is a module without
a file of its own beside the rooms.
"""
