"""Runs a declarative job from its manifest to the saved model: reads, prepares, trains, evaluates and saves."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from trainwright.arguments import deepspeed, sharding
from trainwright.checkpoint.store import CheckpointStore
from trainwright.contract import ResolvedJob, UserError, strict_json
from trainwright.declarative import columns, tasks
from trainwright.declarative.columns import Labels, read_labels
from trainwright.declarative.features import Recipe
from trainwright.declarative.manifest import DatasetSpec, ModelSpec, SampleSpec, view
from trainwright.declarative.metrics import perplexity
from trainwright.declarative.models import build_model, load_config, positions
from trainwright.declarative.reading import Rows, fingerprint, read_splits
from trainwright.declarative.sample import write_samples
from trainwright.declarative.tokenizers import load_tokenizer
from trainwright.integrations.waiting import follow_bars
from trainwright.job import current_round


class Parts(NamedTuple):
    """The inputs of the Trainer."""

    model: Any
    tokenizer: Any
    train: Rows
    eval: Rows | None
    collator: Any
    task: tasks.Task


def run_declarative(job: ResolvedJob, output: Path) -> None:
    """Train ``job`` into ``output``; call :func:`~trainwright.declarative.environment.prepare_environment` before."""
    from trainwright import Seq2SeqTrainer, Seq2SeqTrainingArguments

    quiet = {} if sys.stderr.isatty() else {"disable_tqdm": True}  # no progress bars in a log
    args = Seq2SeqTrainingArguments.from_dict({**quiet, **job.training_arguments, "output_dir": str(output)})
    follow_bars(sys.stderr.isatty())
    sample = view(SampleSpec, job.sample, "spec.sample") if job.sample else None
    args.device  # noqa: B018  # joins the ranks
    store = CheckpointStore.of_job(output, job)
    store.claim(adopt=job.adopt_output)
    parts = assemble(job, args)
    _announce_memory(job, args)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # data loader workers fork, which its threads do not survive
    trainer = Seq2SeqTrainer(
        model=parts.model,
        args=args,
        data_collator=parts.collator,
        train_dataset=parts.train,
        eval_dataset=parts.eval,
        processing_class=parts.tokenizer,
        **tasks.metric_functions(parts.task, parts.tokenizer, args.predict_with_generate),
    )
    newest = store.newest_intact(foreign=job.adopt_output)
    result = trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    trainer.save_model(str(output))
    results = {"train": dict(result.metrics)}
    if parts.eval is not None:
        results["eval"] = _evaluated(trainer, parts)
    if trainer.is_world_process_zero():
        _write_results(results, output)
    if sample is not None:
        _sample(trainer, parts.tokenizer, sample, output)
    trainer.end()


def _sample(trainer: Any, tokenizer: Any, spec: SampleSpec, output: Path) -> None:
    """Write and print the text that the model generates; of a sharded model all ranks have to generate it."""
    leads, together = trainer.is_world_process_zero(), trainer._strategy.sharded
    if leads or together:
        text = write_samples(trainer.model, tokenizer, spec, trainer.args.seed, output if leads else None, together)
        if leads:
            print(text, flush=True)


_NO_PEAK = ("cpu", "xla")
"""Devices beside whose peak no estimate can stand: nobody measures that of a CPU, and a process of XLA has several."""


def _announce_memory(job: ResolvedJob, args: Any) -> None:
    """Rank 0 estimates what a rank needs, once in an attempt; it takes seconds."""
    if args.process_index == 0 and args.device.type not in _NO_PEAK and current_round() == 1:
        from trainwright.declarative.footprint import announce_expected

        announce_expected(job, args.world_size)


def assemble(job: ResolvedJob, args: Any) -> Parts:
    """Tokenizer, model and features of ``job``. One rank of a node computes the features, the others reuse them."""
    from trainwright.devices.seeding import set_seed

    task = tasks.task_named(job.task)
    model_spec = view(ModelSpec, job.model or {}, "spec.model")
    data_spec = view(DatasetSpec, job.dataset or {}, "spec.dataset")
    _check_run(job, task, data_spec, args)
    with first_rank_alone(job.task, job.model, job.dataset):
        config = load_config(model_spec, task.name)
        tokenizer = load_tokenizer(model_spec, task.template)
        splits = read_splits(data_spec, whole_documents=tasks.packs(task, data_spec), seed=args.seed)
        assigned = columns.assign(task.roles, data_spec.columns, splits.train.column_names)
        if splits.eval is not None:
            columns.check_evaluation(assigned, splits.eval.column_names)
        labels = _labels(task, splits, assigned)
        set_seed(args.seed)
        model = build_model(model_spec, config, task.name, tokenizer, labels, _is_divided(args))
        lengths = tasks.lengths(task, data_spec, tokenizer, positions(model))
        recipe = Recipe(tokenizer, assigned, **lengths, labels=labels, streaming=data_spec.streaming)
        train = tasks.prepare(task, splits.train, recipe, "spec.dataset.source")
        evaluation = splits.eval and tasks.prepare(task, splits.eval, recipe, "spec.dataset.evalSource")
    return Parts(model, tokenizer, train, evaluation, task.collator(tokenizer, model), task)


def _is_divided(args: Any) -> bool:
    """Whether no rank holds the whole model: it is then made without values, which each rank gets in parts."""
    if args.deepspeed:
        return deepspeed.stage_of(deepspeed.read_file(args.deepspeed)) == 3
    return sharding.is_on(args.fsdp)


def _labels(task: tasks.Task, splits: Any, assigned: dict[str, str]) -> Labels | None:
    if task.labels_role is None:
        return None
    return read_labels(splits, assigned[task.labels_role], task.labels_role)


def _check_run(job: ResolvedJob, task: tasks.Task, data: DatasetSpec, args: Any) -> None:
    """Checks the job before anything is read."""
    tasks.check_generation(task, args)
    tasks.check_best_metric(task, args)
    evaluates = data.eval_source or data.eval_split or data.validation_fraction is not None
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no" and not evaluates:
        raise UserError(
            "spec.trainingArguments.evalStrategy: there is nothing to evaluate on; "
            "set spec.dataset.evalSource, evalSplit or validationFraction"
        )
    if data.streaming and args.max_steps <= 0:
        raise UserError("spec.trainingArguments.maxSteps: a streamed dataset has no length; set the number of steps")
    if data.streaming and task.labels_role is not None:
        raise UserError(f"spec.dataset.streaming: {task.name} reads all labels before it starts; leave it out")
    if job.sample and not task.generates:
        raise UserError(f"spec.sample: a model for {task.name} does not write text; leave it out")


@contextmanager
def first_rank_alone(*parts: Any) -> Iterator[None]:
    """The first rank of a node to come here goes on alone; the others, after it, all at once.

    Args:
        parts: What the ranks prepare. Ranks that prepare something else do not wait for these.

    It is a lock in the cache that the ranks share. Unlike a barrier it has no timeout, and it also works when several
    pods share the cache of one node. On a file system without locks, ranks may prepare the same at the same time.
    """
    import fcntl

    from datasets import config

    folder = Path(config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"trainwright-{fingerprint(*parts)}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another rank holds it
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _evaluated(trainer: Any, parts: Parts) -> dict[str, float]:
    metrics = dict(trainer.evaluate())
    if parts.task.packs and "eval_loss" in metrics:
        metrics["eval_perplexity"] = perplexity(metrics["eval_loss"])
    return metrics


def _write_results(results: dict[str, dict[str, Any]], output: Path) -> None:
    """``train_results.json``, ``eval_results.json`` and ``all_results.json``, as Hugging Face's scripts write them."""
    for name, metrics in {**results, "all": {k: v for part in results.values() for k, v in part.items()}}.items():
        text = json.dumps(strict_json(metrics), indent=4, sort_keys=True)
        (output / f"{name}_results.json").write_text(text + "\n", encoding="utf-8")
