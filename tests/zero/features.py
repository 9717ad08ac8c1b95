"""Features of the Trainer on two ranks, under DeepSpeed and data parallel: the tests compare the two.

Starting ranks takes far longer than these runs do, so all of them are made in one world.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from trainer import tiny
from trainer.runs import logged, quiet
from trainwright import EarlyStoppingCallback, Trainer, TrainerCallback, deferred_weights
from trainwright.contract import UserError
from trainwright.distributed.named_state import gathered
from zero.runs import SAMPLES, SAVING, STAGES, layout_of, losses, ranks, trainer_of, tried, weights_of, zero

WHOLE = {"stage3_gather_16bit_weights_on_model_save": True}


def stopped_early(folder: Path, given: dict[str, Any]) -> Any:
    own = {"eval_dataset": tiny.texts(6), "callbacks": [EarlyStoppingCallback(1, 10.0)]}
    more = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss", "max_steps": 8}
    trainer = trainer_of(folder, trainer=own, **more, **given)
    trainer.train()
    return [trainer.state.global_step]


def read_by_a_callback(folder: Path, given: dict[str, Any]) -> Any:
    """The sums of squares of all weights; under ZeRO 3 a callback gathers what it reads."""
    seen = []

    class Reader(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **more: Any) -> None:
            with gathered(model.parameters()), torch.no_grad():
                seen.append(float(sum(weight.square().sum() for weight in model.parameters())))

        on_evaluate = on_step_end

    own = {"eval_dataset": tiny.texts(6), "callbacks": [Reader]}
    trainer_of(folder, trainer=own, eval_strategy="steps", eval_steps=2, **given).train()
    return seen


def noisy_embeddings(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, neftune_noise_alpha=5.0, **given)["loss"]


def silent_embeddings(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, **given)["loss"]


def compiled(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, torch_compile=True, torch_compile_backend="aot_eager", max_steps=2, **given)["loss"]


def lopsided() -> list[dict[str, Any]]:
    """Texts of which the second rank has fewer targets than the first, in every batch of 8."""
    samples = tiny.texts(SAMPLES)
    for i, sample in enumerate(samples):
        if i % 8 >= 4:
            sample["labels"] = sample["labels"].clone()
            sample["labels"][3:] = -100
    return samples


def own_means(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, quiet(tiny.t5()), lopsided(), average_tokens_across_devices=False, **given)["loss"]


def common_means(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, quiet(tiny.t5()), lopsided(), **given)["loss"]


def predicted(folder: Path, given: dict[str, Any]) -> Any:
    """Outputs for a number of samples that the ranks cannot share evenly, before the first training and after it."""
    trainer = trainer_of(folder, quiet(tiny.bert()), tiny.sentences(SAMPLES), per_device_eval_batch_size=2, **given)
    before = trainer.predict(tiny.sentences(7))
    trainer.train()
    after = trainer.predict(tiny.sentences(7))
    return [*before.predictions.flatten().tolist(), *after.predictions.flatten().tolist(), after.metrics["test_loss"]]


def model_alone(folder: Path, given: dict[str, Any]) -> Any:
    """A run that saves only models goes on from one, and its best one is trained on with."""
    options = {**SAVING, "save_only_model": True, "eval_strategy": "steps", "eval_steps": 3, "save_total_limit": 2}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = trainer_of(folder / "a", quiet(tiny.gpt2()), **options, **given)
    trainer.train()
    best = trainer.evaluate()["eval_loss"]
    trainer.args.load_best_model_at_end = False
    trainer.train()
    rest = trainer_of(folder / "b", quiet(tiny.gpt2(5)), **{**SAVING, "save_strategy": "no"}, **given)
    rest.train(resume_from_checkpoint=str(folder / "a" / "checkpoint-3"))
    read = type(trainer.model).from_pretrained(folder / "a" / "checkpoint-6")
    total = float(sum(weight.double().square().sum() for weight in read.state_dict().values()))
    return [best, *logged(trainer, "loss"), *logged(rest, "loss"), total]


ALIKE: tuple[Callable[[Path, dict[str, Any]], Any], ...] = (
    stopped_early, read_by_a_callback, noisy_embeddings, silent_embeddings, compiled, own_means, common_means,
    predicted, model_alone,
)  # fmt: skip


# -- number formats


def brain_floats_elsewhere(folder: Path) -> dict[str, Any]:
    """Runs in bfloat16 and what goes on from their middle in other layouts."""
    options = {**SAVING, "bf16": True}
    seen: dict[str, Any] = {}
    layouts = (*STAGES, "DDP", "FSDP")
    for saved in layouts:
        run = trainer_of(folder / f"{saved}", **options, **layout_of(saved))
        run.train()
        seen[f"{saved}"] = logged(run, "loss")
    for saved in layouts:
        for other in layouts:
            if saved in STAGES or other in STAGES:
                rest = trainer_of(folder / "rest", **{**options, "save_strategy": "no"}, **layout_of(other))
                rest.train(resume_from_checkpoint=str(folder / f"{saved}" / "checkpoint-3"))
                seen[f"{saved} -> {other}"] = logged(rest, "loss")
    return seen


def half_precision(folder: Path) -> dict[str, Any]:
    """Runs in fp16 whose first losses overflow, and what goes on from them; the engine has to think this CPU can."""
    from deepspeed.accelerator import get_accelerator

    seen: dict[str, Any] = {}
    with mock.patch.object(type(get_accelerator()), "is_fp16_supported", return_value=True):
        for stage in STAGES:
            seen[f"{stage}"] = _in_half_precision(folder / f"{stage}", stage)
            for other in (1 if stage == 3 else 3, "DDP"):
                seen[f"{stage} -> {other}"] = _in_half_precision(
                    folder / f"{stage}-{other}", other, folder / f"{stage}" / "checkpoint-4"
                )
        seen["DDP"] = _in_half_precision(folder / "DDP", "DDP")
        seen["DDP -> 2"] = _in_half_precision(folder / "DDP-2", 2, folder / "DDP" / "checkpoint-4")
    return seen


def _in_half_precision(folder: Path, layout: Any, resumed: Path | None = None) -> dict[str, Any]:
    """Losses, and the scales of the loss, which is 2 ** 19 at first: too much for the gradients."""
    scales = []

    class Scale(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            engine = getattr(trainer, "deepspeed", None)
            scales.append(engine.optimizer.cur_scale if engine is not None else trainer.scaler.get_scale())

    config = layout_of(layout)
    if layout in STAGES:
        config["deepspeed"]["fp16"] = {"enabled": True, "initial_scale_power": 19, "hysteresis": 1}
    options = {**SAVING, "max_steps": 8, "save_steps": 4, "fp16": True, **config}
    trainer = trainer_of(folder, **options, trainer={"callbacks": [Scale()]})
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    return {
        "loss": logged(trainer, "loss"), "norm": logged(trainer, "grad_norm"), "rate": logged(trainer, "learning_rate"),
        "scale": scales,
    }  # fmt: skip


# -- models that no rank holds whole


def made_in_parts(folder: Path) -> dict[str, Any]:
    """Runs of models made whole and without values, and from their checkpoints."""
    seen: dict[str, Any] = {}
    for make in (tiny.gpt2, tiny.t5):
        for more in ({}, {"bf16": True}):
            place = folder / f"{make.__name__}{len(more)}"
            options = {**SAVING, **more, **zero(3, **WHOLE)}
            runs = {
                "whole": _trained(place / "whole", make(0), options),
                "parts": _trained(place / "parts", _without_values(make, 0), options),
                "rest": _trained(place / "rest", _without_values(make, 9), options, place / "whole" / "checkpoint-3"),
            }
            seen |= {f"{make.__name__}, {'bf16' if more else 'float32'}, {name}": run for name, run in runs.items()}
    return seen


def _without_values(make: Callable[[int], Any], seed: int) -> Any:
    with deferred_weights():
        return make(seed)


def _trained(folder: Path, model: Any, options: dict[str, Any], resumed: Path | None = None) -> Any:
    trainer = trainer_of(folder, quiet(model), **options)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    return logged(trainer, "loss"), weights_of(trainer)


def evaluated_before_it_is_trained(folder: Path) -> dict[str, Any]:
    """A model without values is made whole for that; one that ``deepspeed.zero.Init`` has partitioned cannot be."""
    import deepspeed

    trainer: Trainer = trainer_of(folder, _without_values(tiny.gpt2, 0), **SAVING, **zero(3))
    seen: dict[str, Any] = {"loss": [trainer.evaluate()["eval_loss"]]}
    with deepspeed.zero.Init():
        partitioned = tiny.gpt2()
    try:
        trainer_of(folder, partitioned, **SAVING, **zero(3)).evaluate()
    except UserError as error:
        seen["said"] = str(error)
    return seen


ALONE: tuple[Callable[[Path], Any], ...] = (
    brain_floats_elsewhere, half_precision, made_in_parts, evaluated_before_it_is_trained,
)  # fmt: skip


def everything(folder: Path) -> dict[str, Any]:
    """All that two ranks are asked for; a failure is its traceback."""
    assert ranks() == 2
    seen: dict[str, Any] = {}
    for act in ALIKE:
        for layout in ("DDP", *STAGES):
            given = zero(layout, **WHOLE) if layout in STAGES else {}  # type: ignore[arg-type]
            seen[f"{act.__name__} {layout}"] = tried(act, folder / f"{act.__name__}-{layout}", given)
    for alone in ALONE:
        seen[alone.__name__] = tried(lambda place, _, alone=alone: alone(place), folder / alone.__name__, None)
    return seen
