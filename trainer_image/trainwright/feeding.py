"""The Trainer's methods that give it batches: loaders for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainwright.data.collators import DataCollatorWithPadding, default_data_collator
from trainwright.data.loaders import eval_loader, keep_used_columns, signature_columns, train_loader
from trainwright.data.sampling import column_lengths
from trainwright.introspection import TrainerError
from trainwright.training.horizon import num_examples


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

    def _default_collator(self) -> Callable[[list[Any]], Any]:
        """Pads with the tokenizer or feature extractor if there is one; a processor of several kinds cannot."""
        pads = hasattr(self.processing_class, "pad") and not hasattr(self.processing_class, "tokenizer")
        return DataCollatorWithPadding(self.processing_class) if pads else default_data_collator

    def get_train_dataloader(self) -> Any:
        """This rank's training batches. Override it to bring a loader of your own."""
        sampler = self._get_train_sampler(self.train_dataset) if self._overrides("_get_train_sampler") else None
        return self._make_loader(train_loader, self.train_dataset, self._train_batch_size, "training", sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """This rank's batches of ``eval_dataset``, of the Trainer's own, or of the one with this key."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise TrainerError("eval_dataset: the Trainer was made without one; give it here, or to the Trainer")
        return self._kept_loader(eval_dataset, dataset)

    def _kept_loader(self, key: Any, dataset: Any) -> Any:
        """With persistent workers a set keeps its loader, or every evaluation would leave workers behind."""
        if not self.args.dataloader_persistent_workers or not (key is None or isinstance(key, str)):
            return self._evaluation_loader(dataset)
        kept = self.__dict__.setdefault("_eval_dataloaders", {})
        if key not in kept:
            kept[key] = self._evaluation_loader(dataset)
        return kept[key]

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """This rank's batches of ``test_dataset``."""
        return self._evaluation_loader(test_dataset)

    def _evaluation_loader(self, dataset: Any) -> Any:
        sampler = self._get_eval_sampler(dataset) if self._overrides("_get_eval_sampler") else None
        return self._make_loader(eval_loader, dataset, self.args.eval_batch_size, "evaluation", sampler)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Override it to order the training samples by a torch sampler; None follows ``train_sampling_strategy``."""
        return None

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Override it to order the evaluation samples by a torch sampler."""
        return None

    def _make_loader(self, make: Any, dataset: Any, batch_size: int, description: str, sampler: Any) -> Any:
        collate, lengths = self.data_collator, column_lengths(dataset, self.args)
        if self.args.remove_unused_columns:
            columns = signature_columns(self.model, self.label_names)
            name = type(self.model).__name__
            dataset, collate = keep_used_columns(dataset, collate, columns, description=description, model_name=name)
        return make(
            dataset,
            args=self.args,
            batch_size=batch_size,
            collate_fn=collate,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            lengths=lengths,
            sampler=sampler,
            input_name=(getattr(self.processing_class, "model_input_names", None) or ["input_ids"])[0],
        )

    def num_examples(self, dataloader: Any) -> int:
        """Samples in one pass over ``dataloader``."""
        return num_examples(dataloader, self.args.per_device_train_batch_size)
