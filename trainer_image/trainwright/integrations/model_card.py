"""The README.md of a trained model: a model card with what is known about the run, for people and for the Hub.

Its metadata and names are those of transformers' model cards, which scripts and the Hub read. A model that is not from
transformers gets a card too. The sections that only a person can write are left open.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainwright.distributed.wrapping import base_model, class_name, unwrap

NAME = "README.md"
TAG = "generated_from_trainer"
OPEN = "[More Information Needed]"
HUB = "https://huggingface.co"

_TASKS = {
    "fill-mask": "Masked Language Modeling", "image-classification": "Image Classification",
    "image-segmentation": "Image Segmentation", "multiple-choice": "Multiple Choice",
    "object-detection": "Object Detection", "question-answering": "Question Answering",
    "table-question-answering": "Table Question Answering", "text-classification": "Text Classification",
    "text-generation": "Causal Language Modeling", "token-classification": "Token Classification",
    "zero-shot-classification": "Zero Shot Classification",
    "automatic-speech-recognition": "Automatic Speech Recognition", "audio-classification": "Audio Classification",
}  # fmt: skip
"""The Hub's id of each task whose results it lists -> the display name."""

_METRICS = (
    *("accuracy", "bleu", "f1", "matthews_correlation", "pearsonr", "precision", "recall", "rouge", "sacrebleu"),
    *("spearmanr", "wer"),
)
_FORMATS = ("csv", "json", "pandas", "parquet", "text")
"""The builder names of datasets that were read from files, not from the Hub."""
_SPEED = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")


def write_card(trainer: Any, given: Mapping[str, Any]) -> None:
    """Write the card into the output folder. The tags of an existing card are kept."""
    from huggingface_hub import ModelCard

    path = Path(trainer.args.output_dir) / NAME
    known = ModelCard.load(path).data if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(card_of(trainer, dict(given), getattr(known, "tags", None) or ()), encoding="utf-8")
    if known is not None and known.get("library_name") == "peft":
        _complete_adapters(unwrap(trainer.model), path)


def _complete_adapters(model: Any, path: Path) -> None:
    """Let PEFT, which wrote the existing card, add its part. PEFT replaces the tags and the base, so restore ours."""
    from huggingface_hub import ModelCard

    ours = ModelCard.load(path).data
    model.create_or_update_model_card(str(path.parent))
    card = ModelCard.load(path)
    card.data.tags = list(dict.fromkeys([*ours.tags, *(card.data.tags or ())]))
    card.data.base_model = card.data.base_model or ours.base_model
    card.save(path)


def card_of(trainer: Any, given: dict[str, Any], tags: Iterable[str] = ()) -> str:
    """The text of the card.

    Args:
        given: The arguments of ``Trainer.create_model_card``; None for those to be derived from the run.
        tags: Additional tags.
    """
    model, log = unwrap(trainer.model), trainer.state.log_history
    base, sets = given["finetuned_from"] or _base_of(model), _sets(trainer, given)
    name = given["model_name"] or Path(trainer.args.output_dir).name or base or "model"
    results = _results(log)
    tasks = _listed(given["tasks"]) or _tasks_of(model)
    metadata = _metadata(
        library_name="transformers" if hasattr(model, "save_pretrained") else None,
        language=_listed(given["language"]),
        license=given["license"] or _license_of(base),
        base_model=base,
        tags=list(dict.fromkeys([*_listed(given["tags"]), *tags, TAG])),
        datasets=[each["type"] for each in sets if each["type"]],
        metrics=[tag for tag, _ in _tagged(results)],
        model_name=name,
        eval_results=_eval_results(tasks, sets, results),
    )
    return f"---\n{metadata}\n---\n\n# {name}\n\n" + "\n\n".join([
        "<!-- Written by the Trainer from what it knows of the run; read it, complete it, and delete this line. -->",
        _summary(base, [each["name"] for each in sets], results),
        *(f"## {title}\n\n{OPEN}" for title in
          ("Model description", "Intended uses & limitations", "Training and evaluation data")),
        "## Training procedure",
        "### Training hyperparameters\n\n" + _bullets(hyperparameters(trainer.args, trainer._strategy.data_size)),
        *([f"### Training results\n\n{_table(rows)}"] if (rows := _rows(log)) else []),
        "### Framework versions\n\n" + _versions(),
    ]) + "\n"  # fmt: skip


def _metadata(**fields: Any) -> str:
    from huggingface_hub import ModelCardData

    return ModelCardData(**{name: value for name, value in fields.items() if value or name == "eval_results"}).to_yaml()


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else [each for each in value if each is not None]


# -- base model and datasets


def _base_of(model: Any) -> str | None:
    """The Hub id of the base model."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return name if name and not Path(name).is_dir() else None


def _license_of(base: str | None) -> str | None:
    """The license of the base model, if the Hub can be reached."""
    if base is None:
        return None
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        tags = HfApi().model_info(base, timeout=5).tags or []
    except Exception:  # no network, no such model, or no access: the card then has no license
        return None
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)


def _tasks_of(model: Any) -> list[str]:
    """The Hub's task for a model class of transformers."""
    if "transformers" not in sys.modules:
        return []
    from transformers.modelcard import TASK_MAPPING

    known: dict[str, Any] = dict(TASK_MAPPING)
    kind = class_name(base_model(model))
    fitting = [task for task, classes in known.items() if any(kind in _listed(c) for c in classes.values())]
    return fitting[-1:]


def _sets(trainer: Any, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, type (the Hub id), arguments, configuration and split of each dataset on the card."""
    names, types, args = (_listed(given[key]) for key in ("dataset", "dataset_tags", "dataset_args"))
    found = _hub_dataset(trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset)
    if found is not None:
        types, args = types or [found["type"]], args or [found["config"]]
    names = names or types
    return [
        {
            **({"config": found["config"], "split": found["split"]} if found and number == 0 else {}),
            "name": name,
            "type": types[number] if number < len(types) else None,
            "args": args[number] if number < len(args) else None,
        }
        for number, name in enumerate(names)
    ]


def _hub_dataset(data: Any) -> dict[str, Any] | None:
    name = getattr(data, "builder_name", None) if type(data).__module__.startswith("datasets.") else None
    return None if name in (None, *_FORMATS) else {"type": name, "config": data.config_name, "split": str(data.split)}


# -- evaluation results


def _eval_metrics(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of an evaluation in an entry of the log, without the prefix ``eval_``."""
    return {
        key.removeprefix("eval_"): value
        for key, value in entry.items()
        if key.startswith("eval_") and not key.endswith(_SPEED)
    }


def _results(log: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of the last evaluation, on all its datasets, by display name."""
    last = next((entry.get("step") for entry in reversed(log) if _eval_metrics(entry)), None)
    found = {key: value for entry in log if entry.get("step") == last for key, value in _eval_metrics(entry).items()}
    return {_title(key): value for key, value in found.items()}


def _title(key: str) -> str:
    return " ".join(word.capitalize() for word in key.split("_"))


def _tagged(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The metrics that the Hub knows: its tag and our display name."""
    tags = {name: name.lower().replace(" ", "_") for name in results}
    return [
        ("rouge" if tag == "rouge1" else tag, name) for name, tag in tags.items() if tag == "rouge1" or tag in _METRICS
    ]


def _eval_results(tasks: list[str], sets: list[dict[str, Any]], results: Mapping[str, Any]) -> list[Any]:
    """One result for each task, dataset and metric: the Hub requires all three."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task, task_name=_TASKS[task], dataset_type=each["type"], dataset_name=each["name"],
            dataset_config=each.get("config"), dataset_split=each.get("split"), dataset_args=each["args"],
            metric_type=tag, metric_name=name, metric_value=results[name],
        )
        for task in tasks if task in _TASKS
        for each in sets if each["type"]
        for tag, name in _tagged(results)
    ]  # fmt: skip


def _rows(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each evaluation during training, with the last training loss logged before it."""
    rows: dict[Any, dict[str, Any]] = {}
    loss: Any = "not logged"
    for entry in log:
        if "train_runtime" in entry:
            break
        loss = entry.get("loss", loss)
        if metrics := _eval_metrics(entry):
            step = entry.get("step")
            row = rows.setdefault(step, {"Training Loss": loss, "Epoch": entry.get("epoch"), "Step": step})
            row |= {"Validation Loss" if key == "loss" else _title(key): value for key, value in metrics.items()}
    return list(rows.values())


# -- hyperparameters and versions


def hyperparameters(args: Any, data_size: int) -> dict[str, Any]:
    """The settings that reproduce this run."""
    ranks, accumulated = args.world_size, args.gradient_accumulation_steps
    total_train, total_eval = args.train_batch_size * data_size * accumulated, args.eval_batch_size * data_size
    adam = f", betas=({args.adam_beta1}, {args.adam_beta2}), epsilon={args.adam_epsilon}"
    optimizer = f"{_plain(args.optim)}{adam if 'adam' in args.optim else ''}"
    values: dict[str, Any] = {
        "learning_rate": args.learning_rate,
        "train_batch_size": args.train_batch_size,
        "eval_batch_size": args.eval_batch_size,
        "seed": args.seed,
        "num_devices": ranks if ranks > 1 else None,
        "gradient_accumulation_steps": accumulated if accumulated > 1 else None,
        "total_train_batch_size": total_train if total_train != args.train_batch_size else None,
        "total_eval_batch_size": total_eval if total_eval != args.eval_batch_size else None,
        "optimizer": f"{optimizer}, {args.optim_args}" if args.optim_args else optimizer,
        "lr_scheduler_type": _plain(args.lr_scheduler_type),
        "lr_scheduler_warmup_steps": args.warmup_steps or None,
        "training_steps": args.max_steps if args.max_steps > 0 else None,
        "num_epochs": None if args.max_steps > 0 else args.num_train_epochs,
        "mixed_precision_training": "fp16" if args.fp16 else "bf16" if args.bf16 else None,
        "label_smoothing_factor": args.label_smoothing_factor or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))


def _versions() -> str:
    """The versions of the libraries that the run has imported."""
    names = {"Transformers": "transformers", "Pytorch": "torch", "Datasets": "datasets", "Tokenizers": "tokenizers"}
    present = {name: sys.modules[package] for name, package in names.items() if package in sys.modules}
    return "\n".join(f"- {name} {package.__version__}" for name, package in present.items())


# -- Markdown


def _summary(base: str | None, sets: list[str], results: Mapping[str, Any]) -> str:
    made = "Trained from scratch" if base is None else f"Fine-tuned from [{base}]({HUB}/{base})"
    on = f" on {' and '.join(sets)}" if sets else ""
    if not results:
        return f"{made}{on}."
    return f"{made}{on}. On the evaluation set it reaches:\n\n{_bullets(results)}"


def _bullets(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    """Floats with four decimals, except for values below 0.001, such as learning rates."""
    rounds = isinstance(value, float) and abs(value) >= 0.001 and value != round(value, 4)
    return f"{value:.4f}" if rounds else f"{value}"


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_shown(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [[name.ljust(width) for name, width in zip(line, widths, strict=True)] for line in (columns, *cells)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
