"""Declarative jobs: a model, a dataset and a task by name, for the models of transformers and the data of datasets.

The modules lead from the manifest to the inputs of the Trainer: ``manifest`` (typed views of the spec), ``environment``
(caches, offline, quiet), ``sources`` and ``reading`` (files to rows), ``tokenizers``, ``models``, ``columns``,
``tasks`` (rows to features, collator, metrics), and ``job``, which calls them in order.

A job that runs the user's own script imports none of them.
"""
