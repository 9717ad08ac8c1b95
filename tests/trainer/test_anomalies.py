"""``onAnomaly``: a step that is left out is as if it had not been; a rollback goes back, and on with new data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from trainer import runs, tiny
from trainer.world import in_world
from trainwright import Trainer
from trainwright.contract import UserError
from trainwright.distributed.ranks import Ranks
from trainwright.training.anomalies import LEAST_STEPS, MAX_IN_A_ROW, Watch

STEPS, CLIP = 12, 0.5


class Net(nn.Module):
    """With statistics, which a wrong batch would change."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.layers(x)
        return (nn.functional.cross_entropy(logits, labels), logits) if labels is not None else (logits,)


class Plain(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def net(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(5)
    return kind()


class Batches:
    """A collator that makes the batches of some calls wrong, and keeps all of them."""

    def __init__(self, wrong: tuple[int, ...] = (), value: float = torch.nan) -> None:
        self.wrong, self.value, self.made = wrong, value, list[dict[str, torch.Tensor]]()

    def __call__(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        if len(self.made) + 1 in self.wrong:
            batch["x"][0] = batch["x"][0] * self.value if self.value == self.value else self.value
        self.made.append({key: value.clone() for key, value in batch.items()})
        return batch


def rows(count: int = 128) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 4, generator=generator)
    return [{"x": row, "labels": (row.sum() > 0).long()} for row in x]


def train(
    folder: Any, batches: Batches, policy: str | None = "Skip", kind: type[nn.Module] = Net, **options: Any
) -> Trainer:
    given = {"max_steps": STEPS, "max_grad_norm": CLIP, "per_device_train_batch_size": 4, "warmup_steps": 3}
    more = {"data_collator": batches, "eval_dataset": None}
    trainer = runs.make(folder, net(kind), rows(), **{**given, **options, "trainer": more})
    trainer.on_anomaly = policy
    trainer.train()
    return trainer


def by_hand(
    made: list[dict[str, torch.Tensor]],
    left_out: tuple[int, ...],
    accumulation: int = 1,
    model: nn.Module | None = None,
    fused: bool = True,
) -> dict[str, torch.Tensor]:
    """The same steps in plain torch; those that are left out are not even computed."""
    model = net() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=fused)
    rate = lambda done: min(done / 3, (STEPS - done) / (STEPS - 3))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: max(0.0, rate(done)))
    for step in range(1, STEPS + 1):
        if step in left_out:
            continue
        for batch in made[(step - 1) * accumulation : step * accumulation]:
            (model(**batch)[0] / accumulation).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return runs.state_of(model)


def anomalies(trainer: Trainer) -> list[tuple[Any, ...]]:
    return [
        (one["step"], one["anomaly"], one["rank"], one["action"], one.get("checkpoint"))
        for one in trainer.state.log_history
        if "anomaly" in one
    ]


OPTIMIZERS = {"on the device": "adamw_torch_fused", "by the host": "adamw_torch"}


@pytest.mark.parametrize("optim", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_skipped_step_is_as_if_it_had_not_been(optim: str, tmp_path: Path) -> None:
    batches = Batches(wrong=(5, 12))
    trainer = train(tmp_path, batches, optim=optim)
    expected = by_hand(batches.made, (5, 12), fused=optim == "adamw_torch_fused")
    assert trainer.state.global_step == STEPS
    assert trainer._loop.watch.on_device is (optim == "adamw_torch_fused")
    assert not runs.differing(runs.state_of(trainer.model), expected)
    assert anomalies(trainer) == [
        (5, "LossNotFinite", 0, "Skip", None),
        (12, "LossNotFinite", 0, "Skip", None),
    ]
    assert runs.logged(trainer, "anomalies") == [1] * 7 + [2]


def test_a_step_of_several_micro_batches_is_skipped_whole(tmp_path: Path) -> None:
    batches = Batches(wrong=(5,))
    trainer = train(tmp_path, batches, kind=Plain, gradient_accumulation_steps=2)
    expected = by_hand(batches.made, (3,), 2, net(Plain))
    for name, value in runs.state_of(trainer.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert [one[0] for one in anomalies(trainer)] == [3]


def test_without_anomalies_nothing_changes(tmp_path: Path) -> None:
    watched = train(tmp_path, Batches())
    ignored = train(tmp_path, Batches(), policy=None)
    assert ignored._loop.watch is None
    assert not runs.differing(runs.state_of(watched.model), runs.state_of(ignored.model))
    assert watched.state.log_history[:-1] == ignored.state.log_history[:-1], "the last entry holds times"


@pytest.mark.parametrize("optim", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_rollback_undoes_the_steps_since_the_checkpoint(optim: str, tmp_path: Path) -> None:
    batches = Batches(wrong=(7,))
    trainer = train(tmp_path, batches, "Rollback", save_strategy="steps", save_steps=4, logging_steps=5, optim=optim)
    expected = by_hand(batches.made, (5, 6, 7), fused=optim == "adamw_torch_fused")
    assert not runs.differing(runs.state_of(trainer.model), expected)
    assert anomalies(trainer) == [(7, "LossNotFinite", 0, "Rollback", "checkpoint-4")]
    assert trainer.state.global_step == STEPS


def test_without_a_checkpoint_to_go_back_to_the_step_is_skipped(tmp_path: Path) -> None:
    batches = Batches(wrong=(3,))
    trainer = train(tmp_path, batches, "Rollback", save_strategy="steps", save_steps=4)
    assert anomalies(trainer) == [(3, "LossNotFinite", 0, "Skip", None)]
    assert not runs.differing(runs.state_of(trainer.model), by_hand(batches.made, (3,)))


def test_a_run_resumed_after_a_skipped_step_ends_alike(tmp_path: Path) -> None:
    batches = Batches(wrong=(5,))
    whole = train(tmp_path, batches, save_strategy="steps", save_steps=5, optim="adamw_torch_fused")
    rest = Batches()
    more = {"data_collator": rest, "eval_dataset": None}
    trainer = runs.make(
        tmp_path, net(), rows(), max_steps=STEPS, max_grad_norm=CLIP, per_device_train_batch_size=4, warmup_steps=3,
        trainer=more,
    )  # fmt: skip
    trainer.on_anomaly = "skip"
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert not runs.differing(runs.state_of(trainer.model), runs.state_of(whole.model))
    assert runs.logged(trainer, "anomalies")[-1] == 1, "the history of the checkpoint holds it"


def test_rollbacks_that_do_not_help_end_the_run(tmp_path: Path) -> None:
    batches = Batches(wrong=tuple(range(5, 100)))
    with pytest.raises(UserError, match="after rollbacks at steps 5, 6, 7: another one would not help"):
        train(tmp_path, batches, "Rollback", save_strategy="steps", save_steps=4)


def test_a_run_in_which_no_step_can_be_taken_ends(tmp_path: Path) -> None:
    batches = Batches(wrong=tuple(range(1, 100)))
    with pytest.raises(UserError, match=f"none of the {MAX_IN_A_ROW + 1} last steps could be taken"):
        train(tmp_path, batches, max_steps=80)


def watch(factor: float = 10.0, scales: bool = False) -> Watch:
    return Watch("Skip", factor, Ranks(), torch.device("cpu"), nn.Linear(1, 1), on_device=False, scales=scales)


def judged(watch: Watch, *values: tuple[float, float]) -> list[str]:
    found = []
    for step, (loss, norm) in enumerate(values, start=1):
        watch.begin(step, 0.0, [torch.tensor(loss / 2), torch.tensor(loss / 2)])
        watch.judge(torch.tensor(norm))
        found.append(str(watch.verdict() or ""))
    return found


USUAL = [(2.0 + 0.1 * (step % 3), 1.0) for step in range(LEAST_STEPS)]


@pytest.mark.parametrize(
    ("value", "factor", "said"),
    [
        ((21.5, 1.0), 10.0, "the loss of rank 0 is 10.2 times its running median"),
        ((2.0, 12.0), 10.0, "the gradient norm of rank 0 is 12.0 times its running median"),
        ((20.0, 10.0), 10.0, ""),
        ((500.0, 500.0), 0.0, ""),
        ((torch.inf, 1.0), 0.0, "the loss of rank 0 is not finite"),
        ((2.0, torch.nan), 0.0, "the gradient norm of rank 0 is not finite"),
        ((5.0, 1.0), 2.0, "the loss of rank 0 is 2.4 times its running median"),
    ],
)
def test_a_value_is_judged_by_its_running_median(value: tuple[float, float], factor: float, said: str) -> None:
    assert judged(watch(factor), *USUAL, value) == [""] * LEAST_STEPS + [said]


def test_too_few_steps_have_no_median() -> None:
    assert judged(watch(), *USUAL[:-1], (1000.0, 1000.0))[-1] == ""


def test_losses_below_zero_are_never_too_large() -> None:
    assert judged(watch(), *[(-2.0, 1.0)] * LEAST_STEPS, (50.0, 1.0))[-1] == ""


def test_a_level_that_lasts_is_accepted() -> None:
    found = judged(watch(), *USUAL, *[(50.0, 1.0)] * (LEAST_STEPS + 2))
    assert [bool(said) for said in found[LEAST_STEPS:]] == [True] * (LEAST_STEPS + 1) + [False]


def test_an_overflow_that_the_scaler_skips_is_no_anomaly() -> None:
    assert judged(watch(scales=True), (2.0, torch.inf), (torch.nan, torch.nan)) == [
        "",
        "the loss of rank 0 is not finite",
    ]


def test_the_scale_of_fp16_stays_when_a_step_is_skipped(tmp_path: Path) -> None:
    class Scales(Batches):
        def __call__(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
            seen.append(trainer.scaler.get_scale() if trainer.scaler is not None else 0.0)
            return super().__call__(rows)

    seen: list[float] = []
    more = {"data_collator": Scales(wrong=(5,)), "eval_dataset": None}
    trainer = runs.make(tmp_path, net(Plain), rows(), fp16=True, max_steps=8, trainer=more)
    trainer.on_anomaly = "Skip"
    trainer.train()
    assert [one[:2] for one in anomalies(trainer)] == [(5, "LossNotFinite")], (
        "overflow of the first steps is no anomaly"
    )
    assert trainer.scaler.get_scale() == seen[4]


RANK_CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, by the host": {"optim": "adamw_torch"},
    "ddp, accumulated": {"gradient_accumulation_steps": 2},
    "ddp, rollback": {"policy": "Rollback", "save_strategy": "steps", "save_steps": 2},
    "ddp, a large loss": {"value": 1e4, "max_steps": 24, "wrong": (22,), "learning_rate": 1e-4},
    "fsdp": {"fsdp": True},
    "fsdp, rollback": {"fsdp": True, "policy": "Rollback", "save_strategy": "steps", "save_steps": 2},
}


def on_ranks(_: Any) -> dict[str, Any]:
    """All cases of one rank; only the batches of rank 1 are wrong."""
    rank, found = torch.distributed.get_rank(), {}
    for name, case in RANK_CASES.items():
        options = dict(case)
        policy, value, wrong = (
            options.pop("policy", "Skip"),
            options.pop("value", torch.nan),
            options.pop("wrong", (3,)),
        )
        wrong = tuple(one * options.get("gradient_accumulation_steps", 1) for one in wrong)
        batches = Batches(wrong if rank == 1 else (), value)
        folder = f"/tmp/trainwright-anomalies-{torch.distributed.get_world_size()}-{os.getppid()}"
        trainer = train(folder, batches, policy, Plain, **{"max_steps": 6, **options})
        weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in trainer.model.parameters()]
        found[name] = {
            "weights": [weight.detach().clone() for weight in weights],
            "anomalies": anomalies(trainer),
            "made": batches.made,
            "on_device": trainer._loop.watch.on_device,
        }
        torch.distributed.barrier()
        if rank == 0:
            shutil.rmtree(folder)
        torch.distributed.barrier()
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return in_world(2, "trainer.test_anomalies:on_ranks", longest=400)


LEFT_OUT = {"ddp, a large loss": (22, "LossTooLarge")}


@pytest.mark.parametrize("name", RANK_CASES)
def test_what_one_rank_sees_every_rank_leaves_out(name: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[name] for rank in ranks)
    case = RANK_CASES[name]
    step, kind = LEFT_OUT.get(name, (3, "LossNotFinite"))
    back = ("Rollback", "checkpoint-2") if case.get("policy") else ("Skip", None)
    assert first["anomalies"] == second["anomalies"] == [(step, kind, 1, *back)]
    assert first["on_device"] is (case.get("optim") is None), "the default optimizer is a fused one"
    accumulation = case.get("gradient_accumulation_steps", 1)
    expected = by_hand_on_ranks([first["made"], second["made"]], step, accumulation, case)
    for mine, theirs, hand in zip(first["weights"], second["weights"], expected, strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, hand, rtol=1e-4, atol=1e-6)


def by_hand_on_ranks(
    made: list[list[dict[str, torch.Tensor]]], left_out: int, accumulation: int, case: dict[str, Any]
) -> list[torch.Tensor]:
    """Plain torch in one process, over the batches of both ranks."""
    model, steps, rate = net(Plain), case.get("max_steps", 6), case.get("learning_rate", 1e-2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(done / 3, (steps - done) / (steps - 3)))
    for step in range(1, steps + 1):
        if step == left_out:
            continue
        parts = [batch for rank in made for batch in rank[(step - 1) * accumulation : step * accumulation]]
        for batch in parts:
            (model(**batch)[0] / len(parts)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


BAD = {
    "a policy": ({"on_anomaly": "Stop"}, {}, "on_anomaly: it must be one of Ignore, Skip, Rollback, not 'Stop'"),
    "a factor": ({"on_anomaly": "Skip", "anomaly_factor": 0.5}, {}, "anomaly_factor: it must be above 1"),
    "no checkpoints": ({"on_anomaly": "Rollback"}, {}, "Rollback needs checkpoints, and save_strategy 'no'"),
    "no optimizer in them": (
        {"on_anomaly": "Rollback"},
        {"save_strategy": "steps", "save_only_model": True},
        "Rollback needs checkpoints, and save_only_model",
    ),
}


@pytest.mark.parametrize(("settings", "options", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_done_is_refused(settings: Any, options: Any, said: str, tmp_path: Path) -> None:
    trainer = runs.make(tmp_path, tiny.classifier(), max_steps=2, **options)
    for name, value in settings.items():
        setattr(trainer, name, value)
    with pytest.raises(UserError, match=said):
        trainer.train()
