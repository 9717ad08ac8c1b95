"""Declarative jobs: a model, a dataset and a task by name, for the models of transformers and the data of datasets.

The modules go from what the manifest says to what the Trainer takes: ``manifest`` (typed views of the spec),
``environment`` (caches, offline, quiet), ``sources`` and ``reading`` (files to rows), ``tokenizers``, ``models``,
``columns``, ``tasks`` (rows to features, collator, metrics), and ``job``, which puts them in order.

Nothing here is imported for a job that runs the user's own script.
"""
