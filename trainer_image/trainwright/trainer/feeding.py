"""The Trainer's methods that give it batches: loaders for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler

from trainwright.data.collators import DataCollatorWithPadding, KeepColumns, default_data_collator
from trainwright.data.loaders import eval_loader, has_length, keep_used_columns, signature_columns, train_loader
from trainwright.data.samplers import LengthGroupedSampler
from trainwright.data.sampling import column_lengths
from trainwright.trainer.introspection import TrainerError
from trainwright.training.train_length import num_examples


class Feeding:
    """A part of :class:`trainwright.Trainer`."""

    args: Any
    model: Any
    label_names: list[str]
    data_collator: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any
    _overrides: Callable[[str], bool]
    _train_batch_size: int
    _signature_columns: list[str] | None

    def _default_collator(self) -> Callable[[list[Any]], Any]:
        """Pads with the tokenizer or feature extractor if there is one; a processor of several kinds cannot."""
        pads = hasattr(self.processing_class, "pad") and not hasattr(self.processing_class, "tokenizer")
        return DataCollatorWithPadding(self.processing_class) if pads else default_data_collator

    def get_train_dataloader(self) -> Any:
        """This rank's training batches. Override it to bring a loader of your own."""
        if self.train_dataset is None:
            raise TrainerError("train_dataset: the Trainer was made without one; give it the data to train on")
        ordered = self._overrides("_get_train_sampler") or getattr(self.args, "sortish_sampler", False)
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler if ordered else None,
            is_training=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """This rank's batches of ``eval_dataset``, of the Trainer's own, or of the one with this key."""
        key = eval_dataset if isinstance(eval_dataset, str) else "eval"
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[key] if isinstance(dataset, str) else dataset
        if dataset is None:
            raise TrainerError("eval_dataset: the Trainer was made without one; give it here, or to the Trainer")
        if not self.args.dataloader_persistent_workers:
            return self._evaluation_loader(dataset, "Evaluation", key)
        return self._kept_loader(key, dataset)

    def _kept_loader(self, key: str, dataset: Any) -> Any:
        """With persistent workers a set keeps its loader, or every evaluation would leave workers behind."""
        kept = self.__dict__.setdefault("_eval_dataloaders", {})
        of = self.__dict__.setdefault("_eval_dataloaders_of", {})
        if key not in kept or of.get(key) is not dataset:
            kept[key], of[key] = self._evaluation_loader(dataset, "Evaluation", key), dataset
        return kept[key]

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """This rank's batches of ``test_dataset``."""
        return self._evaluation_loader(test_dataset, "test")

    def _evaluation_loader(self, dataset: Any, description: str, key: str | None = None) -> Any:
        return self._get_dataloader(
            dataset=dataset,
            description=description,
            batch_size=self.args.eval_batch_size,
            sampler_fn=self._get_eval_sampler if self._overrides("_get_eval_sampler") else None,
            dataloader_key=key,
        )

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """What the loaders have in common. ``sampler_fn`` makes a torch sampler that takes the strategy's place."""
        collate, lengths = self.data_collator, column_lengths(dataset, self.args)
        if _has_columns(dataset):
            dataset = self._remove_unused_columns(dataset, description=description)
        else:
            collate = self._get_collator_with_removed_columns(collate, description=description)
        return (train_loader if is_training else eval_loader)(
            dataset,
            args=self.args,
            batch_size=batch_size,
            collate_fn=collate,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            lengths=lengths,
            sampler=None if sampler_fn is None or isinstance(dataset, IterableDataset) else sampler_fn(dataset),
            input_name=self._input_name(),
            name="train_dataset" if is_training else set_name(dataloader_key),
        )

    def _input_name(self) -> str:
        return (getattr(self.processing_class, "model_input_names", None) or ["input_ids"])[0]

    # -- the order

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Override it to order the training samples by a torch sampler; None follows ``train_sampling_strategy``."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if not has_length(dataset) or strategy == "batch_rebalance":
            return None
        if strategy == "group_by_length" or getattr(self.args, "sortish_sampler", False):
            return self._by_length(dataset, self._train_batch_size * self.args.gradient_accumulation_steps)
        return SequentialSampler(dataset) if strategy == "sequential" else RandomSampler(dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Override it to order the evaluation samples by a torch sampler."""
        if not has_length(eval_dataset):
            return None
        if self.args.train_sampling_strategy == "group_by_length":
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            generator = torch.Generator().manual_seed(seed)
            return self._by_length(eval_dataset, self.args.eval_batch_size, generator)
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _by_length(self, dataset: Any, batch_size: int, generator: torch.Generator | None = None) -> Any:
        column = self.args.length_column_name
        lengths = dataset[column] if column in (getattr(dataset, "column_names", None) or ()) else None
        return LengthGroupedSampler(batch_size, dataset, lengths, self._input_name(), generator)

    # -- the columns

    def _set_signature_columns_if_needed(self) -> None:
        """Find out once which columns the model takes; override it, or set ``_signature_columns``, to keep others."""
        if self._signature_columns is None:
            self._signature_columns = signature_columns(self.model, self.label_names)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """A ``datasets.Dataset`` without the columns that the model does not take."""
        if not self.args.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        name = type(self.model).__name__
        kept, _ = keep_used_columns(
            dataset, self.data_collator, self._signature_columns, description=description or "data", model_name=name
        )
        return kept

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        """``data_collator`` after what the model does not take was left out of each sample."""
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return KeepColumns(data_collator, self._signature_columns or (), type(self.model).__name__)

    def num_examples(self, dataloader: Any) -> int:
        """Samples in one pass over ``dataloader``."""
        return num_examples(dataloader, self.args.per_device_train_batch_size)


def set_name(key: str | None) -> str:
    """What messages call an evaluation set: the Trainer's only one (``eval``), one of several, or one to predict."""
    return "test_dataset" if key is None else "eval_dataset" if key == "eval" else f"eval_dataset[{key!r}]"


def _has_columns(dataset: Any) -> bool:
    """Whether a dataset's columns can be removed at once, as those of a ``datasets.Dataset``."""
    is_table = bool(getattr(dataset, "column_names", None)) and hasattr(dataset, "remove_columns")
    return is_table and not isinstance(dataset, IterableDataset)
