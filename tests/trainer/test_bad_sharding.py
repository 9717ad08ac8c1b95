"""What users get wrong with shards: one line on every rank, the same exit code, and the last checkpoint as it was.

Two ranks meet all the cases one after the other: one that a case left waiting, or out of step, would fail the next.
Damaged shards and full disks are in test_sharded_checkpoint.py, DeepSpeed's cases in tests/zero.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn

from trainer import tiny
from trainer.gangs import Gang
from trainer.runs import make, quiet
from trainer.world import in_world
from trainwright.contract import ExitCode, UserError

STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}


def train(folder: Path, model: nn.Module | None = None, data: Any = None, resume: Any = None, **options: Any) -> Any:
    given: dict[str, Any] = {**STEPS, "fsdp": True, **options}
    given["trainer"] = {"eval_dataset": tiny.texts(6), **given.get("trainer", {})}
    model = quiet(tiny.gpt2()) if model is None else model
    trainer = make(folder, model, tiny.texts(64) if data is None else data, **given)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rank() -> int:
    return torch.distributed.get_rank()


def of_two_formats() -> nn.Module:
    model = tiny.gpt2()
    model.transformer.h[0].mlp.to(torch.bfloat16)
    return model


def of_each_rank() -> nn.Module:
    model: Any = tiny.gpt2()
    model.transformer.wpe = nn.Embedding(16 + 4 * rank(), 16)
    return model


def deeper() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=32, n_positions=16))


def settings(**config: Any) -> Callable[[Path], Any]:
    return lambda out: train(out, fsdp_config=config)


def sizes(value: Any) -> Callable[[Path], Any]:
    return lambda out: train(out, parallelism_config=value)


def given(**options: Any) -> Callable[[Path], Any]:
    return lambda out: train(out, **options)


def resumed(step: int = 4, model: Callable[[], nn.Module] | None = None, **options: Any) -> Callable[[Path], Any]:
    def resume(out: Path) -> Any:
        checkpoint = str(out / f"checkpoint-{step}")
        return train(out, None if model is None else model(), resume=checkpoint, **{"max_steps": 6, **options})

    return resume


def an_optimizer(out: Path) -> Any:
    return train(out, trainer={"optimizers": (torch.optim.SGD(tiny.gpt2().parameters()), None)})


def a_file(text: str) -> Callable[[Path], Any]:
    def read(out: Path) -> Any:
        file = out.parent / f"config-{rank()}.json"
        file.write_text(text)
        return train(out, fsdp_config=str(file))

    return read


def of_each_node(out: Path) -> Any:
    """As if each rank were a node, with a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        return train(out.parent / f"node-{rank()}")


TRAINS_ANYWAY = "trained"
SIZE, CLASS = "SIZE_BASED_WRAP", "TRANSFORMER_BASED_WRAP"
LAYERS = {"transformer_layer_cls_to_wrap": ["GPT2Block"]}
MIXED = "mixed_precision_policy"

CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    # -- fsdp and fsdp_config
    "a layer that is not there": (
        settings(transformer_layer_cls_to_wrap=["GPT2Blok"]),
        "transformer_layer_cls_to_wrap: GPT2LMHeadModel has no GPT2Blok; its layers are of GPT2Block",
    ),
    "one of two layers": (
        settings(transformer_layer_cls_to_wrap=["GPT2Block", "Blok"]), "GPT2LMHeadModel has no Blok; its layers are",
    ),
    "a number for layers": (settings(transformer_layer_cls_to_wrap=3), "must be a list of class names, not 3"),
    "a size beside classes": (
        settings(**LAYERS, min_num_params=1000), f"min_num_params: {CLASS} does not choose units by size; leave it out",
    ),
    "classes beside a size": (
        settings(**LAYERS, auto_wrap_policy=SIZE, min_num_params=9),
        f"transformer_layer_cls_to_wrap: {SIZE} does not choose units by class",
    ),
    "classes of one unit": (settings(**LAYERS, auto_wrap_policy="NO_WRAP"), "NO_WRAP does not choose units by class"),
    "no size": (settings(auto_wrap_policy=SIZE), f"min_num_params: {SIZE} needs it"),
    "a size as text": (
        settings(auto_wrap_policy=SIZE, min_num_params="1e8"), "must be a whole number of parameters, not '1e8'",
    ),
    "ignored, but trained": (
        settings(ignored_modules=r".*\.h\.0"), "ignored_modules: transformer.h.0 trains, and no rank would send its",
    ),
    "ignored, but not there": (
        settings(ignored_modules="nothing"), "ignored_modules: 'nothing' matches no module of GPT2LMHeadModel",
    ),
    "ignored by no pattern": (settings(ignored_modules="("), "ignored_modules: '(' is no regular expression"),
    "an unknown key": (settings(cpu_offlod=True), "cpu_offlod is not a choice; did you mean cpu_offload?"),
    "activations offloaded": (settings(activation_checkpointing_offload=True), "offloading activations is not built"),
    "a list of settings": (given(fsdp_config=["cpu_offload"]), "must be a mapping, its JSON text, or the path of a"),
    "no file": (given(fsdp_config="/nowhere/f.json"), "cannot read the file '/nowhere/f.json': No such file"),
    "a torn file": (a_file("{"), "is not JSON"),
    "a file of a list": (a_file("[1]"), "must be a mapping, or the path of a JSON file that holds one"),
    "settings without fsdp": (given(fsdp=None, fsdp_config={"cpu_offload": True}), "fsdp_config needs fsdp"),
    "an unknown word": (given(fsdp="full_shards"), "'full_shards' is not one of full_shard,"),
    "two words": (given(fsdp="full_shard shard_grad_op"), "full_shard and shard_grad_op exclude each other; keep one"),
    "a number for fsdp": (given(fsdp=2.5), "fsdp: must be text, not the number 2.5"),
    "deepspeed beside it": (
        given(deepspeed={"zero_optimization": {"stage": 2}}), "fsdp and deepspeed exclude each other; keep one",
    ),
    "whole numbers to compute in": (settings(**{MIXED: {"param_dtype": "int8"}}), "'int8' is not one of float32"),
    "two formats of 16 bits": (
        given(bf16=True, fsdp_config={MIXED: {"param_dtype": "fp16"}}),
        f"fsdp_config: {MIXED} computes in float16, and bf16 in bfloat16; keep one",
    ),
    # -- the mesh
    "sizes that do not multiply": (
        sizes({"dp_replicate_size": 3, "dp_shard_size": 2}), "3 x dp_shard_size 2 is not the 2 processes of this run",
    ),
    "more shards than ranks": (sizes({"dp_shard_size": 4}), "1 x dp_shard_size 4 is not the 2 processes of this run"),
    "no shards": (sizes({"dp_replicate_size": 2, "dp_shard_size": 1}), "dp_shard_size 1 shards nothing"),
    "no size at all": (sizes({"dp_shard_size": 0}), "dp_shard_size: must be a whole number above 0, not 0"),
    "a size in quotes": (sizes({"dp_shard_size": "2"}), "dp_shard_size: must be a whole number above 0, not '2'"),
    "an unknown axis": (sizes({"dp_size": 2}), "dp_size: is not one of dp_replicate_size, dp_shard_size,"),
    "a list of sizes": (sizes([2]), "must be a mapping of sizes, or accelerate's ParallelismConfig, not [2]"),
    "sizes as text": (sizes('{"dp_shard_size": 2}'), "must be a mapping of sizes, or accelerate's ParallelismConfig"),
    "sizes without fsdp": (given(fsdp=None, parallelism_config={"dp_shard_size": 2}), "sizes the mesh of fsdp; set"),
    **{axis: (sizes({axis: 2}), f"{axis}: 2 is not supported") for axis in ("tp_size", "cp_size", "sp_size")},
    # -- accelerator_config
    "uneven batches": (given(accelerator_config={"even_batches": False}), "with fsdp each needs all; leave it on"),
    "an unknown key of accelerate": (given(accelerator_config={"split_batch": 1}), "did you mean split_batches?"),
    "a text for a flag": (given(accelerator_config={"split_batches": "yes"}), "split_batches must be true or false"),
    # -- optimizers
    "an optimizer": (an_optimizer, "optimizers: with fsdp the optimizer is made of the shards, after the model is"),
    "whole matrices": (
        given(optim="galore_adamw", optim_target_modules=["c_attn"]), "optim cannot step on the shards of fsdp",
    ),
    "steps in the backward pass": (given(optim="lomo"), "optim cannot step on the shards of fsdp"),
    "fused, and offloaded": (given(fsdp="full_shard offload", optim="adamw_torch_fused"), TRAINS_ANYWAY),
    # -- model and data
    "two formats of parameters": (
        lambda out: train(out, of_two_formats()), "of one GPT2Block are of bfloat16 and float32, and fsdp sends them",
    ),
    "no samples": (lambda out: train(out, data=[]), "train_dataset: it is empty; give it samples to train on"),
    "fewer samples than ranks": (lambda out: train(out, data=tiny.texts(1)), TRAINS_ANYWAY),
    "fewer samples than ranks, and the last left out": (
        lambda out: train(out, data=tiny.texts(1), dataloader_drop_last=True), "its 1 samples do not fill one batch of",
    ),
    # -- checkpoints
    "no checkpoint": (lambda out: train(out, resume=str(out / "no")), "it does not exist; give the path of a check"),
    "of another model": (resumed(model=deeper), "is a checkpoint of another model: missing transformer.h.2.ln_1.w"),
    "of another optimizer": (resumed(optim="sgd"), "holds the state of another optimizer, one without dampening, mom"),
    # -- ranks that disagree, where one would wait for the other
    "models that differ": (
        lambda out: train(out, of_each_rank()),
        "the ranks have different ones: transformer.wpe.weight is (16, 16) float32 on rank 0 and (20, 16) float32 on",
    ),
    "lengths that differ": (lambda out: train(out, max_steps=2 + rank()), "max_steps: rank 0 has 2 and rank 1 has 3,"),
    "evaluations that differ": (
        lambda out: train(out, eval_strategy=("no", "steps")[rank()], eval_steps=2), "eval_strategy: rank 0 has no and",
    ),
    "data that differ": (
        lambda out: train(out, data=tiny.texts(64 + 8 * rank()), max_steps=-1), "the length of train_dataset: rank 0",
    ),
    "outputs that differ": (lambda out: train(out.parent / f"own-{rank()}"), "output_dir: rank 0 has "),
    "outputs that nodes do not share": (of_each_node, "the nodes do not share this folder, and each would keep"),
    "checkpoints that differ": (
        lambda out: resumed(2 + 2 * rank())(out), "resume_from_checkpoint: rank 0 has checkpoint-2 and rank 1",
    ),
}  # fmt: skip
OF_DATA = {"no samples", "fewer samples than ranks, and the last left out"}


def checkpoints(output: Path) -> dict[str, bytes]:
    files = (path for path in output.glob("checkpoint-*/**/*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def everything(folder: Path) -> dict[str, Any]:
    """Case -> the exit code and the message of this rank, and whether the last checkpoint is as it was."""
    train(folder / "out")
    kept, seen = checkpoints(folder / "out"), {}
    for name, (case, message) in CASES.items():
        torch.distributed.barrier()
        is_fine = message == TRAINS_ANYWAY
        try:
            case(folder / "fine" / name if is_fine else folder / "out")
            said: tuple[int, str] = (0, TRAINS_ANYWAY)
        except UserError as error:
            said = int(error.exit_code), str(error)
        torch.distributed.barrier()
        seen[name] = (*said, checkpoints(folder / "out") == kept)
    return seen


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_world(2, "trainer.test_bad_sharding:everything", tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_on_every_rank_and_the_checkpoint_stays(two: Any, name: str) -> None:
    _, message = CASES[name]
    code = ExitCode.BAD_DATA if name in OF_DATA else ExitCode.BAD_CONFIGURATION
    for seen_code, said, is_kept in (seen[name] for seen in two):
        assert message in said
        assert len(said.splitlines()) == 1
        assert seen_code == (0 if message == TRAINS_ANYWAY else code)
        assert is_kept


SCRIPT = """
from trainer import tiny
from trainer.runs import make
make("output", tiny.gpt2(), fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": ["Blok"]}).train()
"""


def test_a_user_sees_the_line_and_no_traceback(tmp_path: Path) -> None:
    with Gang(tmp_path, SCRIPT, per_node=2) as gang:
        tests, inherited = str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")
        gang.environment["PYTHONPATH"] = os.pathsep.join([tests, inherited])
        assert gang.run() == [ExitCode.BAD_CONFIGURATION]
        printed = gang.log()
    assert "error: fsdp_config.transformer_layer_cls_to_wrap: GPT2LMHeadModel has no Blok; its layers are of" in printed
    assert "Traceback" not in printed
