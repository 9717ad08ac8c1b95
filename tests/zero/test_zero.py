"""Two ranks under DeepSpeed's ZeRO 1, 2 and 3 train, save and resume as one process without it trains."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer.world import in_world
from trainwright.checkpoint.consolidate import consolidate
from zero import runs

pytest.importorskip("deepspeed", reason="DeepSpeed has an environment of its own: make deepspeed")
LONGEST = 1200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each rank has seen."""
    return in_world(2, "zero.runs:everything", folder, longest=LONGEST)


def of_ranks(two: list[dict[str, Any]], name: str) -> list[Any]:
    found = [rank[name] for rank in two]
    assert not any(isinstance(each, str) for each in found), found[0]
    return found


@pytest.mark.parametrize("stage", runs.STAGES)
@pytest.mark.parametrize("act", runs.ALIKE, ids=lambda act: act.__name__)
def test_two_ranks_do_what_one_process_does(two: Any, tmp_path: Path, act: Any, stage: int) -> None:
    expected = act(tmp_path, {})
    for seen in of_ranks(two, f"{act.__name__} {stage}"):
        for key in ("loss", "grad_norm", "eval_loss"):
            assert seen.get(key, []) == pytest.approx(expected.get(key, []), rel=1e-5), key
        assert seen.get("tokens") == expected.get("tokens")


@pytest.mark.parametrize("stage", [*runs.STAGES, *runs.OTHERS])
@pytest.mark.parametrize("name", ["saved_and_resumed", "resumed_adapters"])
def test_a_resumed_run_ends_with_the_same_bits(two: Any, name: str, stage: int) -> None:
    for seen in of_ranks(two, f"{name} {stage}"):
        assert seen["differing"] == []
        assert seen["losses"][0] == seen["losses"][1]
        assert seen["rates"][0] == seen["rates"][1]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_run_goes_on_in_another_layout(two: Any, folder: Path, ranks: int) -> None:
    every = runs.changes(ranks)
    seen = two if ranks == 2 else in_world(ranks, "zero.runs:resumed_elsewhere", (folder, every), longest=LONGEST)
    cases = [name for name in seen[0] if " -> " in name]
    assert len(cases) == 2 * len(every)
    for case in cases:
        whole = of_ranks(two, case.partition(" -> ")[0])[0]
        for rest in of_ranks(seen, case):
            assert rest["losses"] == pytest.approx(whole["losses"][0], rel=1e-5), case
            assert [decay for decay, _ in rest["groups"]] == ([0.1] if "adapters" in case else [0.1, 0.0])
            for name, value in rest["weights"].items():
                torch.testing.assert_close(value, whole["weights"][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", runs.STAGES)
def test_a_checkpoint_has_the_files_of_hugging_faces_trainer(two: Any, stage: int) -> None:
    names = of_ranks(two, f"saved_and_resumed {stage}")[0]["names"]
    states = ["mp_rank_00_model_states.pt"]
    if stage == 3:
        states = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(2)]
    states += [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
    wanted = {"latest", "zero_to_fp32.py", "scheduler.pt", "trainer_state.json", "trainwright_manifest.json"}
    assert wanted | {f"global_step3/{name}" for name in states} <= set(names)
    assert ("model.safetensors" in names) is (stage < 3)


@pytest.mark.parametrize("stage", runs.STAGES)
def test_the_saved_model_is_whole(two: Any, folder: Path, stage: int) -> None:
    weights = of_ranks(two, f"saved_and_resumed {stage}")[0]["weights"]
    saved = load_file(folder / f"saved_and_resumed-{stage}" / "model" / "model.safetensors")
    assert saved.keys() <= weights.keys()
    for name, value in saved.items():
        assert torch.equal(value, weights[name]), name


def test_partitions_of_zero_3_are_consolidated(two: Any, folder: Path, tmp_path: Path) -> None:
    run = folder / "saved_and_resumed-3"
    weights = of_ranks(two, "saved_and_resumed 3")[0]["weights"]
    consolidate(run / "a" / "checkpoint-6", tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert len(saved) > 10
    for name, value in saved.items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("stage", runs.STAGES)
def test_the_best_model_is_loaded_at_the_end(two: Any, stage: int) -> None:
    for seen in of_ranks(two, f"best_model {stage}"):
        assert seen["after"] == pytest.approx(seen["best"], rel=1e-5)
        assert seen["last"] < seen["best"] - 1e-3


@pytest.mark.parametrize("stage", runs.STAGES)
def test_a_preempted_run_leaves_a_checkpoint(two: Any, stage: int) -> None:
    for code, kept in of_ranks(two, f"preempted {stage}"):
        assert code not in (0, None)
        assert len(kept) == 1


@pytest.mark.parametrize("stage", runs.STAGES)
def test_optimizer_and_schedule_of_the_configuration_are_used_and_resumed(two: Any, stage: int) -> None:
    for seen in of_ranks(two, f"own_optimizer_and_schedule {stage}"):
        assert seen["rates"] == [[0.0, 0.0, 0.001, 0.001]] * 2  # DeepSpeed's warmup begins at 0, twice
        assert seen["losses"][0] == seen["losses"][1]


@pytest.mark.parametrize("stage", runs.STAGES)
def test_a_given_optimizer_and_schedule_are_used(two: Any, stage: int) -> None:
    for seen in of_ranks(two, f"given_optimizer {stage}"):
        assert seen["rates"] == pytest.approx([0.025, 0.025, 0.05, 0.05])


@pytest.mark.parametrize("stage", runs.STAGES)
def test_offloading_to_the_host_changes_nothing(two: Any, tmp_path: Path, stage: int) -> None:
    expected = runs.plain(tmp_path, {})
    for seen in of_ranks(two, f"offloaded {stage}"):
        assert seen["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("stage", runs.STAGES)
def test_brain_floats_train_near_to_float32(two: Any, tmp_path: Path, stage: int) -> None:
    expected = runs.losses(tmp_path, learning_rate=1e-2)
    for seen in of_ranks(two, f"in_sixteen_bits {stage}"):
        assert seen["loss"] == pytest.approx(expected["loss"], rel=2e-2)
        assert seen["loss"] != expected["loss"]


@pytest.mark.parametrize("stage", runs.STAGES)
def test_a_trainer_trains_twice(two: Any, stage: int) -> None:
    for seen in of_ranks(two, f"trained_twice {stage}"):
        assert len(seen) == 4
        assert seen[-1] < 3.48  # where the first run began


def test_gradients_are_exchanged_once_a_step(two: Any) -> None:
    """What the argument ``deepspeed`` does: ZeRO 1 waits for the last micro-batch, ZeRO 2 has no room to."""
    (first, _), (second, _) = (of_ranks(two, f"exchanged_once {stage}") for stage in (1, 2))
    assert 0 < first < second


SAID = {
    "a partition too many": "was written by 2 processes and has the partitions of 3",
    "a partition too few": "was written by 2 processes and has the partitions of 1",
    "torn partition of another stage": "zero_pp_rank_1_mp_rank_00_optim_states.pt: cannot be read",
    "another model and stage": "is a checkpoint of another model: transformer.wpe.weight is",
    "torn partition without an engine": "zero_pp_rank_1_mp_rank_00_optim_states.pt: cannot be read",
    "another model without an engine": "is a checkpoint of another model: transformer.wpe.weight is",
    "another optimizer without an engine": "holds the state of another optimizer, one without alpha",
    "torn file of no engine": "optimizer.pt: cannot be read",
    "another model of no engine": "is a checkpoint of another model: transformer.wpe.weight is",
    "another optimizer of no engine": "holds the state of another optimizer, one without alpha",
    "torn partition of one rank": "zero_pp_rank_1_mp_rank_00_optim_states.pt: cannot be read",
    "torn model": "mp_rank_00_model_states.pt: cannot be read",
    "code in a checkpoint": "mp_rank_00_model_states.pt: cannot be read",
    "another model": "is a checkpoint of another model: transformer.wpe.weight is",
    "a batch that contradicts": "train_batch_size is 99 here, and 2 processes x 4 samples",
    "a value that DeepSpeed refuses": "deepspeed: reduce_bucket_size: ",
    "a schedule that does not exist": "scheduler.type 'Warm' is neither DeepSpeed's (",
    "two optimizers": "optimizer.type is AdamW here, and optim is rmsprop",
    "clipping of one's own": "_clip_grad_norm: DeepSpeed's engine clips within its step",
    "uneven batches": "with deepspeed each needs all",
}


@pytest.mark.parametrize("case", SAID)
def test_every_rank_says_what_cannot_be_in_one_line(two: Any, case: str) -> None:
    for seen in of_ranks(two, "refused"):
        assert SAID[case] in seen[case]
        assert len(seen[case].splitlines()) == 1


def test_a_full_disk_of_one_rank_ends_all_and_keeps_the_checkpoint(two: Any) -> None:
    for seen in of_ranks(two, "full disk"):
        assert "cannot save checkpoint-6" in seen["said"]
        assert "checkpoint-3 is kept" in seen["said"]
        assert seen["kept"] == ["checkpoint-3"]


def test_one_process_trains_alone(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(torch.distributed.destroy_process_group)
        seen = runs.plain(tmp_path, runs.zero(2))
    assert len(seen["loss"]) == 4
