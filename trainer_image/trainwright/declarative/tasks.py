"""The tasks: the columns of each, how rows become features, and the metrics of an evaluation.

The collators of language models stack blocks or pad rows, and add the labels of the objective. Padding is masked by
position, never by token id, so that a model learns eos even if pad and eos are the same token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainwright import rules
from trainwright.contract import DataError, UserError
from trainwright.declarative import features
from trainwright.declarative.features import Featurize, Recipe
from trainwright.declarative.manifest import DatasetSpec
from trainwright.declarative.metrics import classification_metrics, most_likely, tagging_metrics, text_metrics
from trainwright.declarative.reading import Rows, fingerprint
from trainwright.nearest import did_you_mean

DEFAULT_BLOCK_SIZE = 1024
PREPARATION = 1
"""Increased when the same rows and recipe give other features than before, so that old prepared data is not used."""


@dataclass(frozen=True)
class Task:
    """One of the tasks that a manifest can name."""

    name: str
    roles: tuple[str, ...]
    featurize: Callable[[Recipe], Featurize]
    collator: Callable[[Any, Any], Any]
    """Tokenizer and model to collator."""
    template: str | None = None
    """The special tokens that a byte-level tokenizer adds to a text: ``both``, ``end`` or None."""
    labels_role: str | None = None
    compute_metrics: Callable[[Any], dict[str, float]] | None = None
    packs: bool = False
    generates: bool = False


def _causal(tokenizer: Any, model: Any) -> Any:
    return CausalCollator(tokenizer)


def _masked(tokenizer: Any, model: Any) -> Any:
    if tokenizer.mask_token_id is None:
        raise UserError("spec.model.tokenizer: has no mask token, which MaskedLM needs; use an encoder's")
    return MaskedCollator(tokenizer)


def _padding(tokenizer: Any, model: Any) -> Any:
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer)


def _seq2seq(tokenizer: Any, model: Any) -> Any:
    from transformers import DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(tokenizer, model=model)


def _tagging(tokenizer: Any, model: Any) -> Any:
    from transformers import DataCollatorForTokenClassification

    return DataCollatorForTokenClassification(tokenizer)


TASKS = {
    task.name: task
    for task in (
        Task("CausalLM", ("text",), features.language, _causal, packs=True, generates=True),
        Task("MaskedLM", ("text",), features.language, _masked, template="both", packs=True),
        Task(
            "Seq2SeqLM",
            ("source", "target"),
            features.sequence_to_sequence,
            _seq2seq,
            template="end",
            generates=True,
        ),
        Task(
            "SequenceClassification",
            ("text", "textPair", "label"),
            features.sequence_classification,
            _padding,
            template="both",
            labels_role="label",
            compute_metrics=classification_metrics,
        ),
        Task(
            "TokenClassification",
            ("tokens", "tags"),
            features.token_classification,
            _tagging,
            template="both",
            labels_role="tags",
            compute_metrics=tagging_metrics,
        ),
    )
}


def task_named(name: str | None) -> Task:
    """Raises :class:`UserError` if there is no such task."""
    if name is None:
        raise UserError(f"spec.task: is missing; set it to one of {', '.join(TASKS)}")
    if name not in TASKS:
        raise UserError(f"spec.task: {name!r} is not a task{did_you_mean(name, TASKS)}; the tasks: {', '.join(TASKS)}")
    return TASKS[name]


def check_generation(task: Task, args: Any) -> None:
    """Raises :class:`UserError` if the task does not support evaluation by generation."""
    if args.predict_with_generate and task.name != "Seq2SeqLM":
        raise UserError(
            f"spec.trainingArguments.predictWithGenerate: {task.name} has no target text to compare with; "
            "leave it out, or set the task to Seq2SeqLM"
        )


def check_best_metric(task: Task, args: Any) -> None:
    """Raises :class:`UserError` for a metric that the task does not compute, with the message of ``validate``."""
    name, known = args.metric_for_best_model, rules.evaluation_metrics(task.name, args.predict_with_generate)
    if name is None or args.eval_strategy == "no" or name.removeprefix("eval_") in (*known, *rules.MEASURED):
        return
    raise UserError(f"spec.trainingArguments.metricForBestModel: {rules.no_such_metric(name, known)}")


def metric_functions(task: Task, tokenizer: Any, generates: bool) -> dict[str, Any]:
    """The Trainer's keyword arguments for the task's metrics; ``generates`` is ``predict_with_generate``."""
    if generates:
        return {"compute_metrics": text_metrics(tokenizer)}
    if task.compute_metrics is None:
        return {}
    return {"compute_metrics": task.compute_metrics, "preprocess_logits_for_metrics": most_likely}


def packs(task: Task, spec: DatasetSpec) -> bool:
    """Whether a task trains on packed blocks. With only ``maxLength`` set, each row is one example instead."""
    return task.packs and (spec.block_size is not None or spec.max_length is None)


def lengths(task: Task, spec: DatasetSpec, tokenizer: Any, longest: int | None) -> dict[str, int | None]:
    """``block_size`` and ``max_length`` in tokens; ``longest`` is the number of the model's positions, if limited.

    Raises :class:`UserError` for lengths that the model or the task does not support.
    """
    if spec.block_size is not None and not task.packs:
        raise UserError(f"spec.dataset.blockSize: {task.name} does not pack rows into blocks; use maxLength")
    packed = packs(task, spec)
    stated = {"blockSize": spec.block_size, "maxLength": None if packed else spec.max_length}
    for name, value in stated.items():
        if value is not None and longest is not None and value > longest:
            raise UserError(f"spec.dataset.{name}: {value} tokens, but the model has positions for {longest}")
    bound = min(longest or DEFAULT_BLOCK_SIZE, tokenizer.model_max_length)
    if packed:
        return {"block_size": spec.block_size or min(bound, DEFAULT_BLOCK_SIZE), "max_length": spec.max_length}
    return {"block_size": None, "max_length": spec.max_length or bound}


def prepare(task: Task, rows: Rows, recipe: Recipe, place: str) -> Rows:
    """Features of ``rows``, computed once and cached: equal recipes have equal names in all ranks and attempts."""
    options = {"batched": True, "remove_columns": list(rows.column_names)}
    if not recipe.streaming:
        options["desc"] = f"tokenizing {place}"
        options["new_fingerprint"] = fingerprint(rows._fingerprint, task.name, _identity(recipe))
    prepared = rows.map(task.featurize(recipe), **options)
    if not recipe.streaming and len(prepared) == 0:
        raise DataError(
            f"{place}: holds fewer tokens than one block in {len(rows)} rows; "
            f"use more data, or a spec.dataset.blockSize below {recipe.block_size}"
        )
    return prepared.with_format("torch") if task.packs else prepared  # Python lists of blocks would be slow


def _identity(recipe: Recipe) -> str:
    tokenizer = recipe.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    labels = recipe.labels.values if recipe.labels else ()
    lengths = (recipe.block_size, recipe.max_length)
    columns = sorted(recipe.columns.items())
    return fingerprint(PREPARATION, type(tokenizer).__name__, tokenizer, vocabulary, columns, lengths, labels)


IGNORED = -100


def _padded(rows: Sequence[dict[str, Any]], pad: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids of shape (rows, longest), and the attention mask, or None if no row needs padding."""
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
    lengths = {len(row) for row in ids}
    if len(lengths) == 1:
        return torch.stack(ids), None
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
    mask = torch.arange(batch.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
    return batch, mask.long()


class CausalCollator:
    """The labels are the tokens themselves; the model shifts them."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad = tokenizer.pad_token_id or 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """``{"input_ids", "labels"}``, and ``attention_mask`` if there is padding."""
        ids, mask = _padded(rows, self.pad)
        if mask is None:
            return {"input_ids": ids, "labels": ids.clone()}
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


class MaskedCollator:
    """BERT's objective: the model predicts 15% of the tokens of each sequence, never special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers import DataCollatorForLanguageModeling

        self.pad = tokenizer.pad_token_id or 0
        self.special = torch.tensor(tokenizer.all_special_ids)
        self.masking = DataCollatorForLanguageModeling(tokenizer, mlm=True)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """``{"input_ids", "attention_mask", "labels"}``; labels are -100 except at the predicted tokens."""
        ids, mask = _padded(rows, self.pad)
        mask = torch.ones_like(ids) if mask is None else mask
        untouched = torch.isin(ids, self.special) | (mask == 0)
        inputs, labels = self.masking.torch_mask_tokens(ids.clone(), special_tokens_mask=untouched)
        return {"input_ids": inputs, "attention_mask": mask, "labels": labels}
