"""What two ranks do under DeepSpeed, and one process without it: the tests compare their results.

Starting ranks takes far longer than these runs do, so all of them are made in one world.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import nn

from trainer import tiny
from trainer.runs import logged, make, quiet
from trainwright import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback
from trainwright.contract import UserError
from trainwright.distributed.named_state import forms_of, wholes

STAGES = (1, 2, 3)
OTHERS: dict[str, dict[str, Any]] = {
    "DDP": {},
    "FSDP": {"fsdp": True},
    "FSDP, whole": {"fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}},
}
"""Layouts without an engine; with one process, DDP is that process alone."""
SAMPLES = 64
STEPS = {"max_steps": 4, "train_sampling_strategy": "sequential", "optim": "sgd", "learning_rate": 0.05}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage, **more}}}


def layout_of(name: Any) -> dict[str, Any]:
    return OTHERS[name] if name in OTHERS else zero(name)


def ranks() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def trainer_of(folder: Path, model: nn.Module | None = None, data: Any = None, **options: Any) -> Trainer:
    given = {**STEPS, "per_device_train_batch_size": 8 // ranks(), **options}
    given["trainer"] = {"eval_dataset": tiny.texts(16), **given.get("trainer", {})}
    return make(folder, quiet(model or tiny.gpt2()), data or tiny.texts(SAMPLES), **given)


def losses(folder: Path, model: nn.Module | None = None, data: Any = None, **options: Any) -> dict[str, list[float]]:
    trainer = trainer_of(folder, model, data, **options)
    trainer.train()
    return {key: logged(trainer, key) for key in ("loss", "grad_norm", "eval_loss")}


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    names = list(forms_of(trainer.model))
    return {name: value.float().clone() for name, value in wholes(trainer.model, names).items()}


# -- what one process without DeepSpeed does too; ``given`` has the stage


def plain(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, **given)


def accumulated_and_clipped(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, gradient_accumulation_steps=2, max_grad_norm=0.1, **given)


def label_smoothing(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, label_smoothing_factor=0.2, **given)


def frozen_parameters(folder: Path, given: dict[str, Any]) -> Any:
    model: Any = tiny.gpt2()
    for parameter in model.transformer.h[0].parameters():
        parameter.requires_grad = False
    return losses(folder, model, **given)


def adapters() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    return get_peft_model(tiny.gpt2(), LoraConfig(target_modules=["c_attn"], r=4, init_lora_weights=False))


def low_rank_adapters(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, adapters(), **given)


def activations_recomputed(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, activation_checkpointing=True, **given)


def evaluated_unevenly(folder: Path, given: dict[str, Any]) -> Any:
    more = {"eval_strategy": "steps", "eval_steps": 2, "trainer": {"eval_dataset": tiny.sentences(11)}}
    return losses(folder, tiny.bert(), tiny.sentences(SAMPLES), **more, **given)


def encoder_and_decoder(folder: Path, given: dict[str, Any]) -> Any:
    return losses(folder, tiny.t5(), gradient_accumulation_steps=2, **given)


def optimizers(folder: Path, given: dict[str, Any]) -> Any:
    options = {"lr_scheduler_type": "constant", "learning_rate": 1e-3, **given}
    names = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop")
    return {
        "loss": [
            loss
            for name in names
            for loss in losses(folder, tiny.classifier(), tiny.vectors(SAMPLES), **{**options, "optim": name})["loss"]
        ]
    }


def generated(folder: Path, given: dict[str, Any]) -> Any:
    """Texts of different lengths on each rank, and a loss."""
    args = Seq2SeqTrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, save_strategy="no", predict_with_generate=True,
        generation_max_length=9, per_device_eval_batch_size=2, per_device_train_batch_size=8 // ranks(),
        **{**STEPS, "max_steps": 2}, **given,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(quiet(tiny.t5()), args, train_dataset=tiny.texts(SAMPLES), eval_dataset=tiny.texts(7))
    trainer.train()
    found = trainer.predict(tiny.texts(7))
    return {"tokens": found.predictions.tolist(), "loss": [found.metrics["test_loss"]]}


ALIKE: tuple[Callable[[Path, dict[str, Any]], Any], ...] = (
    plain, accumulated_and_clipped, label_smoothing, frozen_parameters, low_rank_adapters, activations_recomputed,
    evaluated_unevenly, encoder_and_decoder, optimizers, generated,
)  # fmt: skip


# -- what only DeepSpeed does


SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch_fused"}
SAVING |= {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "weight_decay": 0.1}


def saved_and_resumed(folder: Path, stage: Any, model: Callable[[], nn.Module] = tiny.gpt2) -> dict[str, Any]:
    """A run, one from its middle in the same layout, and how far apart they are."""
    whole = trainer_of(folder / "a", model(), **SAVING, **layout_of(stage))
    whole.train()
    rest = trainer_of(folder / "b", model(), **SAVING, **layout_of(stage))
    rest.train(resume_from_checkpoint=str(folder / "a" / "checkpoint-3"))
    ours, theirs = weights_of(whole), weights_of(rest)
    whole.save_model(str(folder / "model"))
    return {
        "differing": [name for name in ours if not torch.equal(ours[name], theirs[name])],
        "losses": (logged(whole, "loss"), logged(rest, "loss")),
        "rates": (logged(whole, "learning_rate"), logged(rest, "learning_rate")),
        "weights": ours,
        "names": sorted(
            p.relative_to(folder / "a" / "checkpoint-3").as_posix() for p in (folder / "a" / "checkpoint-3").rglob("*")
        ),
    }


def best_model(folder: Path, stage: int) -> dict[str, Any]:
    """The best model is that of the first evaluation here, as the highest loss wins; it is loaded at the end."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    more = {"metric_for_best_model": "loss", "greater_is_better": True}
    trainer = trainer_of(folder, **{**SAVING, **options, **more}, **zero(stage))
    trainer.train()
    best = max(logged(trainer, "eval_loss"))
    last = logged(trainer, "eval_loss")[-1]
    return {"best": best, "after": trainer.evaluate()["eval_loss"], "last": last}


def preempted(folder: Path, stage: int) -> Any:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = trainer_of(
        folder,
        **{**SAVING, "save_steps": 100},
        **zero(stage),
        enable_jit_checkpoint=True,
        trainer={"callbacks": [Stop()]},
    )
    try:
        trainer.train()
    except SystemExit as left:
        torch.distributed.barrier()
        return left.code, sorted(path.name for path in folder.glob("checkpoint-*"))
    return "trained on"


def own_optimizer_and_schedule(folder: Path, stage: int) -> dict[str, list[float]]:
    """Both are named in the configuration, with values that the arguments fill."""
    config = {
        "zero_optimization": {"stage": stage},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
        },
        "scheduler": {"type": "WarmupDecayLR", "params": {
            "total_num_steps": "auto", "warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto",
        }},
    }  # fmt: skip
    options = {"optim": "adamw_torch_fused", "learning_rate": 1e-3, "warmup_steps": 2, "deepspeed": config}
    trainer = trainer_of(folder, **{**STEPS, **options, "save_strategy": "steps", "save_steps": 2})
    trainer.train()
    rest = trainer_of(folder / "rest", **{**STEPS, **options})
    rest.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    rates, losses = ([logged(each, key) for each in (trainer, rest)] for key in ("learning_rate", "loss"))
    return {"rates": rates, "losses": losses}


def given_optimizer(folder: Path, stage: int) -> dict[str, list[float]]:
    model = quiet(tiny.gpt2())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=2)
    more = {"trainer": {"optimizers": (optimizer, schedule)}}
    trainer = make(folder, model, tiny.texts(SAMPLES), per_device_train_batch_size=4, **STEPS, **zero(stage), **more)
    trainer.train()
    return {"rates": logged(trainer, "learning_rate"), "loss": logged(trainer, "loss")}


def offloaded(folder: Path, stage: int) -> Any:
    where = {"offload_optimizer": {"device": "cpu"}}
    where |= {"offload_param": {"device": "cpu"}} if stage == 3 else {}
    return losses(folder, **zero(stage, **where))


def in_sixteen_bits(folder: Path, stage: int) -> Any:
    return losses(folder, bf16=True, **{**STEPS, "learning_rate": 1e-2}, **zero(stage))


def trained_twice(folder: Path, stage: int) -> list[float]:
    trainer = trainer_of(folder, **zero(stage))
    trainer.evaluate()
    trainer.train()
    trainer.train()
    return logged(trainer, "loss")


def exchanged_once(folder: Path, stage: int) -> int:
    """How many reductions of gradients a step of 4 micro-batches makes."""
    from unittest import mock

    from deepspeed import comm

    seen = []

    def counting(name: str) -> Any:
        real = getattr(comm, name)

        def count(*args: Any, **kwargs: Any) -> Any:
            tensor = args[0]
            if isinstance(tensor, torch.Tensor) and tensor.numel() > 1000:
                seen.append(name)
            return real(*args, **kwargs)

        return mock.patch.object(comm, name, count)

    names = ("all_reduce", "reduce", "reduce_scatter_fn")
    trainer = trainer_of(folder, **{**STEPS, "max_steps": 1}, gradient_accumulation_steps=4, **zero(stage))
    with counting(names[0]), counting(names[1]), counting(names[2]):
        trainer.train()
    return len(seen)


ALONE: tuple[Callable[[Path, int], Any], ...] = (
    saved_and_resumed, best_model, preempted, own_optimizer_and_schedule, given_optimizer, offloaded, in_sixteen_bits,
    trained_twice, exchanged_once,
)  # fmt: skip


def resumed_adapters(folder: Path, stage: Any) -> dict[str, Any]:
    return saved_and_resumed(folder, stage, adapters)


def resumed_elsewhere(given: tuple[Path, list[tuple[Any, Any]]]) -> dict[str, Any]:
    """Resumes the runs of :func:`saved_and_resumed` from their middle in this world; (its layout, that of the rest)."""
    folder, cases = given
    return {
        f"{act} {saved} -> {layout}": tried(
            lambda place, _, act=act, saved=saved, layout=layout: rest_of(
                folder / f"{act}-{saved}" / "a", place, layout
            ),
            folder / f"{act}-{saved}-{layout}-{ranks()}",
            None,
        )
        for act in ("saved_and_resumed", "resumed_adapters")
        for saved, layout in cases
    }


def changes(ranks: int) -> list[tuple[Any, Any]]:
    """Each layout of a run on two ranks, and each in which so many ranks go on from it; one of both has an engine."""
    engines = [(saved, stage) for saved in STAGES for stage in STAGES if ranks != 2 or (saved == 3) != (stage == 3)]
    without = ["DDP"] if ranks == 1 else ["DDP", "FSDP"]
    left = [(saved, other) for saved in STAGES for other in without]
    return [*engines, *left, *((other, stage) for other in OTHERS for stage in STAGES)]


def rest_of(saved: Path, folder: Path, layout: Any) -> dict[str, Any]:
    model = adapters() if saved.parent.name.startswith("resumed_adapters") else tiny.gpt2()
    trainer = trainer_of(folder, model, **{**SAVING, "save_strategy": "no"}, **layout_of(layout))
    trainer.train(resume_from_checkpoint=str(saved / "checkpoint-3"))
    kept = [group for group in trainer.optimizer.param_groups if layout in STAGES or group["params"]]
    groups = [(group["weight_decay"], group["lr"]) for group in kept]
    return {"losses": logged(trainer, "loss"), "groups": groups, "weights": weights_of(trainer)}


# -- what cannot be


def refused(folder: Path) -> dict[str, str]:
    """Case -> the message that this rank gets."""
    made = folder / "saved"
    trainer_of(made, **{**SAVING, "max_steps": 3}, **zero(2)).train()
    plain_run = folder / "plain"
    trainer_of(plain_run, **{**SAVING, "max_steps": 3}).train()
    torch.distributed.barrier()

    def resume(checkpoint: Path, **options: Any) -> None:
        trainer_of(folder / "again", **{**SAVING, **options}).train(resume_from_checkpoint=str(checkpoint))

    def damaged(change: Callable[[Path], None], run: Path = made) -> Path:
        copy = folder / f"copy of {change.__name__}"
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run, copy)
            (copy / "checkpoint-3" / "trainwright_manifest.json").unlink()
            change(copy / "checkpoint-3" / "global_step3")
        torch.distributed.barrier()
        return copy / "checkpoint-3"

    def without_optimizer(states: Path) -> None:
        (states / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(b"torn")

    def without_model(states: Path) -> None:
        (states / "mp_rank_00_model_states.pt").write_bytes(b"")

    def foreign_code(states: Path) -> None:
        torch.save({"run": argparse.Namespace()}, states / "mp_rank_00_model_states.pt")

    def of_three(states: Path) -> None:
        shutil.copy(states / "zero_pp_rank_1_mp_rank_00_optim_states.pt",
                    states / "zero_pp_rank_2_mp_rank_00_optim_states.pt")  # fmt: skip

    def without_numbers(states: Path) -> None:
        (states.parent / "optimizer.pt").write_bytes(b"torn")

    def without_a_file(states: Path) -> None:
        (states / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()

    def own_clipping() -> None:
        class Clipping(Trainer):
            def _clip_grad_norm(self, model: Any) -> Any:
                return super()._clip_grad_norm(model)

        make(folder, tiny.gpt2(), tiny.texts(8), Clipping, **zero(2)).train()

    def wide() -> Any:
        model: Any = tiny.gpt2()
        model.transformer.wpe = nn.Embedding(99, model.config.n_embd)
        return model

    cases: dict[str, Callable[[], Any]] = {
        "a partition too many": lambda: resume(damaged(of_three), **zero(2)),
        "a partition too few": lambda: resume(damaged(without_a_file), **zero(2)),
        "torn partition of another stage": lambda: resume(damaged(without_optimizer), **zero(3)),
        "another model and stage": lambda: trainer_of(folder, wide(), **SAVING, **zero(3)).train(
            str(made / "checkpoint-3")
        ),
        "torn partition without an engine": lambda: resume(damaged(without_optimizer)),
        "another model without an engine": lambda: trainer_of(folder, wide(), **SAVING).train(
            str(made / "checkpoint-3")
        ),
        "another optimizer without an engine": lambda: resume(made / "checkpoint-3", optim="rmsprop"),
        "torn file of no engine": lambda: resume(damaged(without_numbers, plain_run), **zero(2)),
        "another model of no engine": lambda: trainer_of(folder, wide(), **SAVING, **zero(3)).train(
            str(plain_run / "checkpoint-3")
        ),
        "another optimizer of no engine": lambda: resume(plain_run / "checkpoint-3", optim="rmsprop", **zero(2)),
        "torn partition of one rank": lambda: resume(damaged(without_optimizer), **zero(2)),
        "torn model": lambda: resume(damaged(without_model), **zero(2)),
        "code in a checkpoint": lambda: resume(damaged(foreign_code), **zero(2)),
        "another model": lambda: trainer_of(folder, wide(), **SAVING, **zero(2)).train(str(made / "checkpoint-3")),
        "a batch that contradicts": lambda: trainer_of(
            folder, deepspeed={"zero_optimization": {"stage": 2}, "train_batch_size": 99}
        ),
        "a value that DeepSpeed refuses": lambda: trainer_of(folder, **zero(2, reduce_bucket_size="big")).train(),
        "a schedule that does not exist": lambda: trainer_of(
            folder, deepspeed={"zero_optimization": {"stage": 1}, "scheduler": {"type": "Warm"}}
        ).train(),
        "two optimizers": lambda: trainer_of(
            folder, deepspeed={"zero_optimization": {"stage": 1}, "optimizer": {"type": "AdamW"}}, optim="rmsprop"
        ),
        "clipping of one's own": own_clipping,
        "uneven batches": lambda: trainer_of(folder, **zero(2), accelerator_config={"even_batches": False}),
    }
    said = {}
    for name, case in cases.items():
        try:
            case()
            said[name] = "nothing"
        except (UserError, ValueError) as error:
            said[name] = str(error)
        except Exception:
            said[name] = traceback.format_exc()
    return said


def full_disk(folder: Path) -> dict[str, Any]:
    """The disk of rank 1 is full during the second save: every rank says so, and the first checkpoint stays."""
    import resource

    class Full(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4 and torch.distributed.get_rank() == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    trainer = trainer_of(folder, **SAVING, **zero(2), trainer={"callbacks": [Full()]})
    try:
        trainer.train()
        said = "nothing"
    except UserError as error:
        said = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    torch.distributed.barrier()  # each rank removes its own files
    return {"said": said, "kept": sorted(path.name for path in folder.iterdir())}


def everything(folder: Path) -> dict[str, Any]:
    """All that two ranks are asked for; a failure is its traceback."""
    seen: dict[str, Any] = {}
    for stage in STAGES:
        for act in ALIKE:
            seen[f"{act.__name__} {stage}"] = tried(act, folder / f"{act.__name__}-{stage}", zero(stage))
        for alone in (*ALONE, resumed_adapters):
            seen[f"{alone.__name__} {stage}"] = tried(alone, folder / f"{alone.__name__}-{stage}", stage)
    for other in OTHERS:
        for act in (saved_and_resumed, resumed_adapters):
            seen[f"{act.__name__} {other}"] = tried(act, folder / f"{act.__name__}-{other}", other)
    seen |= resumed_elsewhere((folder, changes(2)))
    seen["refused"] = tried(lambda place, _: refused(place), folder / "refused", None)
    seen["full disk"] = tried(lambda place, _: full_disk(place), folder / "full", None)
    return seen


def tried(act: Callable[[Path, Any], Any], folder: Path, given: Any) -> Any:
    try:
        return act(folder, given)
    except BaseException:
        return traceback.format_exc()
