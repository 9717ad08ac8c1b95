"""Modules with the names that scripts, checkpoints and pods use, importable directly from ``trainwright``.

``trainwright.__path__`` includes this folder after the package's own, so that ``trainwright.training_args`` exists
without a file next to the packages.
"""
