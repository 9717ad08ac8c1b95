"""Every key of sharding that transformers and accelerate read is honoured, or refused by name with the reason."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from typing import Any

import pytest
from accelerate import ParallelismConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin, launch
from transformers import TrainingArguments as TheirArguments

from trainwright import TrainingArguments
from trainwright.arguments import ArgumentError, sharding
from trainwright.contract import UserError

KEYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "reshard_after_forward": (False, {"reshard_after_forward": False}),
    "cpu_offload": ("true", {"cpu_offload": True}),
    "auto_wrap_policy": ("no_wrap", {"auto_wrap_policy": "NO_WRAP"}),
    "transformer_layer_cls_to_wrap": ("A,B", {"transformer_layer_cls_to_wrap": ("A", "B")}),
    "activation_checkpointing": (True, {"activation_checkpointing": True}),
    "cpu_ram_efficient_loading": (True, {"cpu_ram_efficient_loading": True}),
    "sync_module_states": (False, {"sync_module_states": False}),
    "state_dict_type": ("FULL_STATE_DICT", {"state_dict_type": "FULL_STATE_DICT"}),
    "ignored_modules": (r".*\.gate", {"ignored_modules": r".*\.gate"}),
    "forward_prefetch": (True, {"forward_prefetch": True}),
    "mixed_precision_policy": ({"param_dtype": "bf16"}, {"param_dtype": "bfloat16"}),
    "version": (2, {}),
    "use_orig_params": (True, {}),
    "limit_all_gathers": (True, {}),
    "backward_prefetch": ("BACKWARD_PRE", {}),
    "xla": (False, {}),
}
"""Key -> a value, and what it sets."""

REFUSED = {
    "version": (1, "version: 1 is not supported: transformers removes FSDP 1; leave version out for FSDP 2"),
    "sharding_strategy": ("FULL_SHARD", "it is of FSDP 1; set reshard_after_forward to true or false"),
    "reshard_after_forward": ("full_shard", "is a strategy of FSDP 1; FSDP 2 takes true (full_shard) or false"),
    "use_orig_params": (False, "FSDP 2 always keeps the original parameters; leave it out"),
    "limit_all_gathers": (False, "FSDP 2 always limits them; leave it out"),
    "backward_prefetch": ("BACKWARD_POST", "FSDP 2 always prefetches in the backward pass; leave it out, or see forw"),
    "activation_checkpointing_offload": (True, "offloading activations is not built; leave it out"),
    "xla": (True, "torch_xla shards by its own compiler; leave fsdp out there"),
    "auto_wrap_policy": ("SOME", "'SOME' is not one of TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP, NO_WRAP"),
    "state_dict_type": ("LOCAL_STATE_DICT", "is not one of FULL_STATE_DICT, SHARDED_STATE_DICT"),
    "cpu_offload": ("maybe", "cpu_offload: must be true or false, not 'maybe'"),
    "cpu_ram_efficient_loading": (True, "needs sync_module_states"),
    "min_num_params": (-1, "min_num_params: must be a whole number of parameters, not -1"),
    "mixed_precision_policy": ({"buffer_dtype": "bf16"}, "'buffer_dtype' is not one of param_dtype, reduce_dtype"),
    "param_init_fn": (print, "it is an object of accelerate's plugin, which does not prepare the model here"),
    "reshard_after_forwards": (True, "reshard_after_forwards is not a choice; did you mean reshard_after_forward?"),
}
"""Key -> a value, and what is said of it."""


BESIDE: dict[str, dict[str, Any]] = {"cpu_ram_efficient_loading": {"sync_module_states": False}}
"""What is given with a key."""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # transformers sets it


@pytest.mark.parametrize("key", KEYS)
def test_a_key_sets_what_it_says(key: str) -> None:
    value, settings = KEYS[key]
    args = TrainingArguments(fsdp=True, fsdp_config={f"fsdp_{key}": value})
    assert sharding.read(args.fsdp, args.fsdp_config) == sharding.Fsdp(**settings)


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_cannot_be_honoured_is_refused_with_the_reason(key: str) -> None:
    value, said = REFUSED[key]
    with pytest.raises(ArgumentError) as error:
        TrainingArguments(fsdp=True, fsdp_config={key: value, **BESIDE.get(key, {})})
    assert str(error.value).startswith("fsdp_config: ")
    assert said in str(error.value)


def test_every_key_of_transformers_and_accelerate_is_known() -> None:
    source = inspect.getsource(TheirArguments._process_fsdp_args) + inspect.getsource(
        TheirArguments._apply_legacy_fsdp_to_config
    )
    read = set(re.findall(r"""(?<!xla_)fsdp_config(?:\.get|\.setdefault)?[\[(]["'](\w+)["']""", source))
    plugin = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    plugin -= {"fsdp_version", "transformer_cls_names_to_wrap"}  # version, transformer_layer_cls_to_wrap
    assert len(read) > 15
    assert read | plugin <= set(sharding._KEYS)


@pytest.mark.parametrize("words", ["full_shard", "shard_grad_op offload", "full_shard auto_wrap", True])
def test_words_of_fsdp_mean_what_they_mean_to_transformers(words: Any, tmp_path: Any) -> None:
    theirs = TheirArguments(str(tmp_path), use_cpu=True, report_to="none", fsdp=words)
    ours = TrainingArguments(fsdp=words)
    assert (ours.fsdp, ours.fsdp_config) == (theirs.fsdp, theirs.fsdp_config)
    assert sharding.read(theirs.fsdp, theirs.fsdp_config) == sharding.read(ours.fsdp, ours.fsdp_config)
    ours.check()
    assert (ours.fsdp, ours.fsdp_config) == (theirs.fsdp, theirs.fsdp_config)


def test_words_may_be_a_list_as_in_older_versions() -> None:
    assert TrainingArguments(fsdp=["shard_grad_op", "offload"]).fsdp_config["cpu_offload"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [("no_shard", "no_shard shards nothing; leave fsdp out to train data parallel"), ("half", "'half' is not one of")],
)
def test_a_word_that_is_none_is_refused(words: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        TrainingArguments(fsdp=words)


def test_no_sharding_may_be_said_in_many_ways() -> None:
    for off in (None, False, "", []):
        args = TrainingArguments(fsdp=off, fsdp_config={"min_num_params": 0, "xla": False})
        assert not sharding.is_on(args.fsdp)


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_activations_are_not_recomputed_twice(name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"{name}: fsdp_config\.activation_checkpointing does the same"):
        TrainingArguments(fsdp=True, fsdp_config={"activation_checkpointing": True}, **{name: True})


# -- the mesh

SIZES: dict[str, tuple[Any, Any, int, int, tuple[int, int]]] = {
    "all ranks": ("full_shard", None, 8, 4, (1, 8)),
    "within the node": ("hybrid_shard", None, 8, 4, (2, 4)),
    "within the only node": ("hybrid_shard", None, 4, 4, (1, 4)),
    "both sizes": (True, {"dp_replicate_size": 4, "dp_shard_size": 2}, 8, 8, (4, 2)),
    "copies alone": (True, {"dp_replicate_size": 2}, 8, 8, (2, 4)),
    "shards alone": (True, {"dp_shard_size": 2}, 8, 8, (4, 2)),
    "accelerate's object": (True, ParallelismConfig(dp_replicate_size=2, dp_shard_size=2), 4, 4, (2, 2)),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_mesh_is(name: str) -> None:
    words, sizes, world, node, mesh = SIZES[name]
    args = TrainingArguments(fsdp=words, parallelism_config=sizes)
    settings = sharding.read(args.fsdp, args.fsdp_config)
    assert sharding.sizes(settings, args.parallelism_config, world, node) == mesh


def test_one_process_is_refused_as_in_transformers() -> None:
    with pytest.raises(UserError, match="fsdp: it shards over the processes of a run, and this one trains alone"):
        sharding.sizes(sharding.Fsdp(), None, 1, 1)


def test_a_node_of_one_process_has_no_ranks_to_shard_over() -> None:
    with pytest.raises(UserError, match="hybrid_shard shards within a node, and each node has one process"):
        sharding.sizes(sharding.Fsdp(hybrid=True), None, 2, 1)


@pytest.mark.parametrize("axis", ["tp_size", "cp_size", "sp_size"])
def test_axes_that_are_not_built_are_refused_by_name(axis: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{axis}: 2 is not supported"):
        TrainingArguments(fsdp=True, parallelism_config={axis: 2})


# -- accelerate's launcher


def launched(*flags: str) -> dict[str, str]:
    args = launch_command_parser().parse_args(["--use_fsdp", *flags, "--num_processes", "2", "script.py"])
    args, *_ = _validate_launch_command(args)
    environment = launch.prepare_multi_gpu_env(args)
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_all(*flags: str) -> None:
        for name, value in launched(*flags).items():
            if name.startswith(("FSDP_", "ACCELERATE_USE_", "PARALLELISM_")):
                monkeypatch.setenv(name, value)

    return set_all


def test_the_launchers_fsdp_is_obeyed(enter: Any) -> None:
    enter(
        *("--fsdp_version", "2", "--fsdp_reshard_after_forward", "false", "--fsdp_offload_params", "true"),
        *("--fsdp_transformer_layer_cls_to_wrap", "A,B", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
        *("--fsdp_state_dict_type", "SHARDED_STATE_DICT", "--fsdp_activation_checkpointing", "true"),
    )
    args = TrainingArguments()
    assert sharding.read(args.fsdp, args.fsdp_config) == sharding.Fsdp(
        reshard_after_forward=False, cpu_offload=True, transformer_layer_cls_to_wrap=("A", "B"),
        activation_checkpointing=True, cpu_ram_efficient_loading=True,
    )  # fmt: skip


def test_what_the_arguments_say_wins_over_the_launcher(enter: Any) -> None:
    enter("--fsdp_version", "2", "--fsdp_offload_params", "true", "--fsdp_activation_checkpointing", "true")
    args = TrainingArguments(fsdp=True, fsdp_config={"cpu_offload": False})
    settings = sharding.read(args.fsdp, args.fsdp_config)
    assert (settings.cpu_offload, settings.activation_checkpointing) == (False, True)


def test_the_launchers_fsdp_1_is_refused_by_the_variables_name(enter: Any) -> None:
    enter("--fsdp_version", "1")
    with pytest.raises(ArgumentError, match="FSDP_VERSION: 1 is not supported: transformers removes FSDP 1"):
        TrainingArguments()


def test_the_launchers_sizes_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "2")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "4")
    assert TrainingArguments(fsdp=True).parallelism_config == {"dp_replicate_size": 2, "dp_shard_size": 4}
    monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")
    with pytest.raises(ArgumentError, match="PARALLELISM_CONFIG_TP_SIZE: 2 is not supported"):
        TrainingArguments(fsdp=True)
