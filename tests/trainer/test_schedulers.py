"""Every schedule gives the values of transformers' function of the same name, with and without keyword arguments."""

from __future__ import annotations

import pytest
import torch
from transformers import optimization as theirs

from trainwright.training import schedulers as ours

STEPS = 40

CASES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"lr_end": 1e-4, "power": 2.0}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 30}),
    ("cosine_with_min_lr", {"min_lr": 1e-3}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 0.75}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-3, "warmup_lr_rate": 0.3}),
    ("warmup_stable_decay", {"num_decay_steps": 10}),
    ("warmup_stable_decay", {"num_decay_steps": 10, "warmup_type": "cosine", "decay_type": "linear"}),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 9, "warmup_type": "1-sqrt", "decay_type": "1-sqrt", "min_lr_ratio": 0.1},
    ),
    ("warmup_stable_decay", {"num_decay_steps": 10, "num_stable_steps": 5, "num_cycles": 1.0}),
]


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)


def rates(get_scheduler, name, kwargs, warmup):
    optimizer = make_optimizer()
    scheduler = get_scheduler(name, optimizer, warmup, STEPS, dict(kwargs))
    seen = []
    for _ in range(STEPS + 3):  # beyond the end as well
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=lambda value: str(value))
def test_schedule_equals_that_of_transformers(name, kwargs, warmup):
    assert rates(ours.get_scheduler, name, kwargs, warmup) == pytest.approx(
        rates(theirs.get_scheduler, name, kwargs, warmup), rel=1e-12, abs=1e-15
    )


def test_every_name_of_transformers_is_there():
    assert set(ours.TYPE_TO_SCHEDULER_FUNCTION) == {name.value for name in theirs.TYPE_TO_SCHEDULER_FUNCTION}


GREEDY = [
    {"patience": 1, "min_lr": 1e-4},
    {"patience": 0, "min_lr": 5e-3, "reset_start": 2, "cooldown": 1, "warmup": 2},
    {"patience": 1, "mode": "max", "threshold_mode": "rel", "threshold": 0.05, "max_lr": 0.03},
    {"patience": 1, "smooth": True, "window_size": 3, "min_lr": 1e-4},
]


@pytest.mark.parametrize("kwargs", GREEDY, ids=str)
def test_greedy_equals_that_of_transformers_also_from_its_saved_state(kwargs):
    metrics = [3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.6, 0.7, 0.8, 0.9, 0.9, 1.0, 1.1, 1.2, 0.2, 0.1, 0.05, 0.3, 0.4] * 2
    our_optimizer, their_optimizer = make_optimizer(), make_optimizer()
    mine, reference = ours.GreedyLR(our_optimizer, **kwargs), theirs.GreedyLR(their_optimizer, **kwargs)
    seen, expected = [], []
    for number, metric in enumerate(metrics):
        if number == 17:
            state, mine = mine.state_dict(), ours.GreedyLR(our_optimizer, **kwargs)
            mine.load_state_dict(state)
        mine.step(metric)
        reference.step(metric)
        seen.append(mine.get_last_lr()[0])
        expected.append(reference.get_last_lr()[0])
    assert seen == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) > 1


def test_plateau_follows_the_metric():
    optimizer = make_optimizer()
    scheduler = ours.get_scheduler("reduce_lr_on_plateau", optimizer, 0, STEPS, {"factor": 0.5, "patience": 1})
    for _ in range(4):
        scheduler.step(1.0)
    assert ours.follows_metric(scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("nonsense", {}, "lr_scheduler_type: 'nonsense' is none of linear"),
        ("cosine_with_min_lr", {}, "give one of min_lr and min_lr_rate"),
        ("polynomial", {"lr_end": 1.0}, "lr_end: 1.0 must be below the learning rate 0.02"),
        (
            "warmup_stable_decay",
            {"num_decay_steps": 3, "decay_type": "cubic"},
            "'cubic' is none of linear, cosine, 1-sqrt",
        ),
        ("warmup_stable_decay", {}, "lr_scheduler_kwargs: .*num_decay_steps"),
        ("linear", {"cycles": 3}, "lr_scheduler_kwargs: .*cycles"),
        ("constant", {"cycles": 3}, "the schedule 'constant' takes none, not cycles"),
        ("greedy", {"factor": 2.0}, "factor must be below 1, got 2.0"),
    ],
)
def test_mistakes_are_named(name, kwargs, message):
    with pytest.raises(ours.ScheduleError, match=message):
        ours.get_scheduler(name, make_optimizer(), 2, STEPS, kwargs)
