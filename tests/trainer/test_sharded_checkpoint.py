"""Checkpoints in shards: written by two ranks, gone on from in any layout, and what damages them said in one line.

Starting ranks takes far longer than these runs do, so each world makes all the runs of its size.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, fsdp_utils
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.distributed.checkpoint import filesystem

from trainer import tiny
from trainer.runs import logged, make, quiet
from trainer.world import in_world
from trainwright import Trainer, TrainerCallback
from trainwright.checkpoint import consolidate
from trainwright.checkpoint.deferred import deferred_weights, read_from
from trainwright.checkpoint.sharded import DESCRIPTION, MODEL_SHARDS, OPTIMIZER_SHARDS
from trainwright.checkpoint.store import MANIFEST, CheckpointStore
from trainwright.contract import UserError
from trainwright.distributed.named_state import model_state, optimizer_state, whole
from trainwright_operator.cli import main

STEPS, HALF = 6, 3
BATCH = 8
"""Over all ranks: every layout trains on the same batches."""
SHARDED, WHOLE = {"fsdp": True}, {"fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}


def trainer_of(folder: Path, world: int = 1, model: Any = None, **options: Any) -> Any:
    """A Trainer of a tiny GPT-2, with AdamW and a schedule, that saves at half time."""
    defaults: dict[str, Any] = {
        "max_steps": STEPS, "save_strategy": "steps", "save_steps": HALF, "learning_rate": 1e-3,
        "per_device_train_batch_size": BATCH // world, "lr_scheduler_type": "cosine", "weight_decay": 0.1,
    }  # fmt: skip
    model = quiet(tiny.gpt2()) if model is None else model
    return make(folder, model, tiny.texts(64), trainer={"eval_dataset": tiny.texts(16)}, **(defaults | options))


def run(folder: Path, world: int, resume: Path | None = None, **options: Any) -> dict[str, Any]:
    """What a run ends with: weights, optimizer, losses; the same on every rank."""
    trainer = trainer_of(folder, world, **options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return ending(trainer)


def ending(trainer: Any) -> dict[str, Any]:
    optimizer = optimizer_state(trainer.model, trainer.optimizer)["state"]
    return {
        "weights": {name: whole(value).clone() for name, value in model_state(trainer.model).items()},
        "optimizer": {f"{n} {k}": whole(v).clone() for n, entry in optimizer.items() for k, v in entry.items()},
        "loss": logged(trainer, "loss"),
        "rate": logged(trainer, "learning_rate"),
    }


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of the endings of two runs."""
    pairs = [(a[kind][name], b[kind][name]) for kind in ("weights", "optimizer") for name in a[kind]]
    assert a["rate"][-1] == b["rate"][-1]
    return max(float((x - y).abs().max()) for x, y in pairs)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def two_ranks(folder: Path) -> dict[str, Any]:
    """All that two ranks are asked for. Every run starts from the same weights and sees the same batches."""
    seen: dict[str, Any] = {"unbroken": run(folder / "a", 2, **SHARDED)}
    first = folder / "a" / f"checkpoint-{HALF}"
    seen["same layout"] = run(folder / "b", 2, first, **SHARDED)
    os.environ["TRAINWRIGHT_ASYNC_SAVE"] = "1"
    seen["beside"] = run(folder / "beside", 2, **SHARDED)
    os.environ["TRAINWRIGHT_ASYNC_SAVE"] = "0"
    seen["data parallel"] = run(folder / "ddp", 2)
    seen["shards to data parallel"] = run(folder / "c", 2, first)
    seen["data parallel to shards"] = run(folder / "d", 2, folder / "ddp" / f"checkpoint-{HALF}", **SHARDED)
    seen["whole"] = run(folder / "whole", 2, **WHOLE)
    seen["whole to shards"] = run(folder / "e", 2, folder / "whole" / f"checkpoint-{HALF}", **SHARDED)
    seen["best"] = best_of(folder / "best")
    seen["alone"] = run(folder / "alone", 2, **SHARDED, save_only_model=True)
    seen["best of alone"] = best_of(folder / "best alone", save_only_model=True)
    seen["own savers"] = with_own_savers(folder / "own")
    seen["made in shards"] = run(folder / "made", 2, **SHARDED, model=without_values())
    read = without_values(seed=1)
    assert read_from(read, folder / "best" / "model") == []
    seen["read in shards"] = run(folder / "read", 2, **SHARDED, model=read, max_steps=1, learning_rate=0.0)
    seen |= with_accelerate(folder / "accelerate", first)
    seen |= with_adapters(folder / "adapters")
    seen["refused"] = refused(folder)
    return seen


def with_accelerate(folder: Path, ours: Path) -> dict[str, Any]:
    """Accelerate loads our shards into another model and saves them, and a run goes on from its."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    rank = torch.distributed.get_rank()
    accelerator = SimpleNamespace(
        wait_for_everyone=torch.distributed.barrier, is_fsdp2=True, num_processes=2, process_index=rank,
        is_main_process=rank == 0, state=PartialState(),
    )  # fmt: skip
    other = trainer_of(folder / "other", 2, quiet(tiny.gpt2(seed=5)), **SHARDED, max_steps=1, save_strategy="no")
    other.train()
    fsdp_utils.load_fsdp_model(plugin, accelerator, other.model, str(ours))
    fsdp_utils.load_fsdp_optimizer(plugin, accelerator, other.optimizer, other.model, str(ours))
    theirs = folder / ours.name
    theirs.mkdir(parents=True, exist_ok=True)
    fsdp_utils.save_fsdp_model(plugin, accelerator, other.model, str(theirs))
    fsdp_utils.save_fsdp_optimizer(plugin, accelerator, other.optimizer, other.model, str(theirs))
    for file in ours.glob("*.pt*") if rank == 0 else ():
        shutil.copy(file, theirs)
    if rank == 0:
        shutil.copy(ours / "trainer_state.json", theirs)
    torch.distributed.barrier()
    return {"by accelerate": run(folder / "again", 2, theirs, **SHARDED)}


def adapted(seed: int = 3) -> Any:
    base = quiet(tiny.gpt2())
    torch.manual_seed(seed)
    return get_peft_model(
        base, LoraConfig(target_modules=["c_attn"], modules_to_save=["ln_f"], r=4, init_lora_weights=False)
    )


def with_adapters(folder: Path) -> dict[str, Any]:
    """Runs that train adapters: resumed, with adapters that PEFT loads before and after the model is sharded."""
    first = trainer_of(folder / "a", 2, adapted(), **SHARDED)
    first.train()
    seen = {"adapters": ending(first)}
    seen["resumed adapters"] = run(folder / "b", 2, folder / "a" / f"checkpoint-{HALF}", **SHARDED, model=adapted())
    seen["best adapters"] = best_of(folder / "best", model=adapted())
    two = [adapted(5) for _ in range(2)]
    for model in two:
        model.load_adapter(str(folder / "a" / f"checkpoint-{HALF}"), "second")
    seen["two adapters"] = run(folder / "c", 2, **SHARDED, model=two[0])
    seen["two adapters resumed"] = run(folder / "d", 2, folder / "c" / f"checkpoint-{HALF}", **SHARDED, model=two[1])
    alone: dict[str, Any] = {**SHARDED, "save_only_model": True}
    seen["adapters alone"] = run(folder / "alone", 2, model=adapted(), **alone)
    saved_alone = folder / "alone" / f"checkpoint-{HALF}"
    with pytest.warns(UserWarning, match="holds the model alone .save_only_model.; these start afresh: the optimizer"):
        seen["adapters alone resumed"] = run(folder / "alone again", 2, saved_alone, model=adapted(), **alone)
    other = trainer_of(folder / "e", 2, adapted(5), **SHARDED, max_steps=1)
    other.train()
    other.model.load_adapter(str(folder / "a" / f"checkpoint-{STEPS}"), "default")
    seen["adapters loaded into shards"] = ending(other)
    return seen


def adapter_added_late(folder: Path) -> str:
    trainer = trainer_of(folder, 2, adapted(), **SHARDED, max_steps=1)
    trainer.train()
    trainer.model.add_adapter("late", LoraConfig(target_modules=["c_attn"], r=2))
    trainer.model.set_adapter("late")
    with pytest.raises(UserError) as caught:
        trainer.train()
    return str(caught.value)


def without_values(seed: int = 0) -> Any:
    with deferred_weights():
        model = quiet(tiny.gpt2(seed))
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


def best_of(folder: Path, **options: Any) -> dict[str, Any]:
    """A run whose first evaluation counts as the best; it keeps only that checkpoint, and saves its model."""
    trainer = trainer_of(
        folder, 2, **SHARDED, **options, load_best_model_at_end=True, metric_for_best_model="loss",
        greater_is_better=True, eval_strategy="steps", eval_steps=2, save_steps=2, save_total_limit=1,
        learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder / "model"))
    return ending(trainer)


class OwnSavers(Trainer):
    """Saves by methods of its own, as many scripts do."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        (Path(output_dir or self.args.output_dir) / "mine.txt").write_text("mine")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)


def with_own_savers(folder: Path) -> dict[str, Any]:
    trainer_of(folder, 2, **SHARDED, kind=OwnSavers).train()
    again = trainer_of(folder, 2, **SHARDED, kind=OwnSavers)
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{HALF}"))
    return ending(again)


def refused(folder: Path) -> dict[str, str]:
    """What a run says of checkpoints that it cannot go on from, and of a disk that is full on one rank."""
    first, bad = folder / "a" / f"checkpoint-{HALF}", folder / "bad"
    if torch.distributed.get_rank() == 0:
        spoil(first, bad)
    torch.distributed.barrier()
    said = {name: error_of(bad / "out", bad / name) for name in ("missing", "damaged", "code")}
    said["another model"] = error_of(bad / "out", first, model=wider())
    said["late adapter"] = adapter_added_late(folder / "late")
    said["full"] = error_of(folder / "full", full=True)
    os.environ["TRAINWRIGHT_ASYNC_SAVE"] = "1"
    said["full beside"] = error_of(folder / "full beside", full=True)
    os.environ["TRAINWRIGHT_ASYNC_SAVE"] = "0"
    return said


def spoil(checkpoint: Path, into: Path) -> None:
    """Damaged copies, without the manifest that would tell at once."""
    for name in ("missing", "damaged", "code"):
        shutil.copytree(checkpoint, into / name)
        (into / name / MANIFEST).unlink()
    (into / "missing" / MODEL_SHARDS / "__1_0.distcp").unlink()
    (into / "damaged" / OPTIMIZER_SHARDS / DESCRIPTION).write_bytes(b"")
    (into / "code" / MODEL_SHARDS / DESCRIPTION).write_bytes(pickle.dumps(Path.cwd))


def error_of(folder: Path, resume: Path | None = None, full: bool = False, model: Any = None) -> str:
    """What this rank says; with ``full``, the disk of rank 1 is full after the first checkpoint."""
    trainer = trainer_of(folder, 2, model, **SHARDED, save_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        if full:
            trainer.add_callback(FullDisk(patch))
        with pytest.raises(UserError) as caught:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return str(caught.value)


class FullDisk(TrainerCallback):
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.get_rank() == 1:
            self.patch.setattr(filesystem, "_write_item", no_space)


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wider() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=32, n_positions=16))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def two(output: Path) -> dict[str, Any]:
    first, second = in_world(2, "trainer.test_sharded_checkpoint:two_ranks", output, longest=270)
    assert all(distance(first[name], second[name]) == 0 for name in first if name != "refused")
    return {**first, "refused": [first["refused"], second["refused"]]}


def test_every_rank_writes_its_shards_and_nobody_the_whole(two, output):
    names = files_of(output / "a" / f"checkpoint-{HALF}")
    assert {name for name in names if "/" in name} == {
        f"{folder}/{file}" for folder in (MODEL_SHARDS, OPTIMIZER_SHARDS)
        for file in (".metadata", "__0_0.distcp", "__1_0.distcp")
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".safetensors") or name == "optimizer.pt"]
    assert {"config.json", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth", MANIFEST} <= set(names)


def test_the_same_layout_goes_on_to_the_bit(two):
    assert distance(two["same layout"], two["unbroken"]) == 0


def test_accelerate_reads_our_shards_and_we_read_its(two):
    assert distance(two["by accelerate"], two["unbroken"]) == 0


def test_a_save_beside_the_training_holds_what_one_at_once_does(two, output):
    assert distance(two["beside"], two["unbroken"]) == 0
    for name in ("a", "beside"):
        assert files_of(output / name / f"checkpoint-{HALF}") == files_of(output / "a" / f"checkpoint-{HALF}")


ENVELOPE = 1e-4
"""AdamW over 3 steps at 1e-3: layouts sum gradients in another order."""


@pytest.mark.parametrize("name", ["shards to data parallel", "data parallel to shards", "whole to shards"])
def test_another_layout_goes_on_from_it(name, two):
    assert distance(two[name], two["unbroken"]) < ENVELOPE


def test_one_process_goes_on_from_shards(two, output, tmp_path):
    with pytest.warns(UserWarning, match="written by 2 processes"):
        seen = run(tmp_path, 1, output / "a" / f"checkpoint-{HALF}")
    assert distance(seen, two["unbroken"]) < ENVELOPE


# -- the model


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The weights as ``from_pretrained`` reads them, and no other."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return dict(model.state_dict())


def assert_same(saved: dict[str, torch.Tensor], ended: dict[str, torch.Tensor]) -> None:
    assert saved.keys() == ended.keys()
    assert all(torch.equal(saved[name], ended[name]) for name in saved)


@pytest.mark.parametrize("name", ["best", "best of alone"])
def test_the_best_model_is_loaded_and_saved_whole(name, two, output):
    folder = output / {"best": "best", "best of alone": "best alone"}[name]
    assert [path.name for path in sorted(folder.glob("checkpoint-*"))] == ["checkpoint-2"]
    assert_same(saved(folder / "model"), two[name]["weights"])
    assert "lm_head.weight" not in load_file(folder / "model" / "model.safetensors")


def test_a_model_saved_alone_is_one_that_from_pretrained_reads(two, output):
    folder = output / "alone" / f"checkpoint-{STEPS}"
    assert_same(saved(folder), two["unbroken"]["weights"])
    assert not [name for name in files_of(folder) if "optimizer" in name or MODEL_SHARDS in name]


def test_a_checkpoint_in_shards_is_consolidated_without_a_process_group(two, output, tmp_path, capsys, monkeypatch):
    checkpoint, shown = output / "a" / f"checkpoint-{STEPS}", []

    @contextmanager
    def growing(what, written, expected):
        yield
        shown.append((what, written(), expected()))

    monkeypatch.setattr(consolidate, "growing", growing)
    assert main(["consolidate", str(checkpoint), str(tmp_path / "model"), "--max-shard-size", "8KB"]) == 0
    written = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert "model.safetensors.index.json" in written
    assert len(written) > 3
    assert_same(saved(tmp_path / "model"), two["unbroken"]["weights"])
    ((what, done, expected),) = shown
    assert what == f"consolidating checkpoint-{STEPS}"
    assert expected <= done < expected + 4096 * len(written), "progress is that of the tensors; headers come on top"
    assert main(["consolidate", str(checkpoint), str(tmp_path / "model")]) == 2
    assert "holds a model; choose another folder" in capsys.readouterr().err


def test_what_cannot_be_consolidated_is_said_in_one_line(output, tmp_path, capsys):
    torn = tmp_path / f"checkpoint-{STEPS}"
    shutil.copytree(output / "a" / torn.name, torn)
    (torn / MODEL_SHARDS / ".metadata").unlink()
    adapters = output / "adapters" / "a" / f"checkpoint-{STEPS}"
    for checkpoint, line in (
        (torn, f"cannot be used: {MODEL_SHARDS}/.metadata is missing; take another checkpoint"),
        (adapters, "holds adapters, which are not in shards: PeftModel.from_pretrained reads them as they are"),
    ):
        assert main(["consolidate", str(checkpoint), str(tmp_path / "model")]) == 2
        assert capsys.readouterr().err == f"trainwright consolidate: {checkpoint}: {line}\n"


def test_methods_of_a_subclass_save_shards_too(two, output):
    assert distance(two["own savers"], two["unbroken"]) == 0
    names = files_of(output / "own" / f"checkpoint-{HALF}")
    assert {"mine.txt", f"{MODEL_SHARDS}/__1_0.distcp", f"{OPTIMIZER_SHARDS}/__1_0.distcp"} <= set(names)


def test_a_model_made_in_shards_is_the_one_made_whole_with_the_same_seed(two):
    assert distance(two["made in shards"], two["unbroken"]) == 0


def test_each_rank_reads_its_shards_of_a_saved_model(two):
    assert_same(two["read in shards"]["weights"], two["best"]["weights"])


# -- adapters


@pytest.mark.parametrize("name", ["adapters", "two adapters"])
def test_a_run_of_adapters_is_resumed_from_their_files_to_the_bit(name, two, output):
    resumed = {"adapters": "resumed adapters", "two adapters": "two adapters resumed"}[name]
    assert distance(two[resumed], two[name]) == 0
    names = files_of(output / "adapters" / {"adapters": "a", "two adapters": "c"}[name] / f"checkpoint-{HALF}")
    assert "adapter_model.safetensors" in names
    assert ("second/adapter_model.safetensors" in names) is (name == "two adapters")
    assert not [file for file in names if MODEL_SHARDS in file or file == "model.safetensors"]


def test_adapters_saved_alone_go_on_with_a_new_optimizer(two, output):
    names = files_of(output / "adapters" / "alone" / f"checkpoint-{HALF}")
    assert "adapter_model.safetensors" in names
    assert not [name for name in names if "optimizer" in name or name == "model.safetensors"]
    first, second = (two[name]["loss"] for name in ("adapters alone", "adapters alone resumed"))
    assert second[: HALF + 1] == first[: HALF + 1], "the loss of the first step after it is that of the saved adapters"
    assert second[HALF + 1 :] != first[HALF + 1 :]


def test_the_best_adapters_are_loaded_and_saved_as_peft_reads_them(two, output):
    assert [path.name for path in (output / "adapters" / "best").glob("checkpoint-*")] == ["checkpoint-2"]
    read = PeftModel.from_pretrained(quiet(tiny.gpt2()), output / "adapters" / "best" / "model")
    assert_same(dict(read.state_dict()), two["best adapters"]["weights"])


def test_peft_loads_an_adapter_into_shards(two):
    assert_same(two["adapters loaded into shards"]["weights"], two["adapters"]["weights"])


# -- what is wrong

REFUSED = {
    "missing": "__1_0.distcp is missing",
    "damaged": "its description of the shards cannot be read",
    "code": "which describes no shards",
    "another model": "is a checkpoint of another model: transformer.wte.weight is (32, 16) there and (32, 32) here",
    "late adapter": "c_attn.lora_A.late.weight was added after the model was sharded",
    "full": "cannot save checkpoint-4: the disk is full",
    "full beside": "cannot save checkpoint-4: the disk is full",
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_is_one_line_on_every_rank(name, two):
    for said in two["refused"]:
        assert REFUSED[name] in said[name]
        assert "\n" not in said[name]


@pytest.mark.parametrize("name", ["full", "full beside"])
def test_a_disk_full_on_one_rank_leaves_the_last_checkpoint(name, two, output):
    store = CheckpointStore(output / name)
    assert store.newest_intact() == store.path(2)
    assert [path for path in os.listdir(output / name) if path.startswith((".", "checkpoint"))] == ["checkpoint-2"]
