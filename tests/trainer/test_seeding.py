"""Seeds and states of all generators, alike with transformers."""

from __future__ import annotations

import random

import numpy as np
import torch
import transformers

from trainwright.devices.seeding import derived_seed, preserved_rng, rng_state, set_rng_state, set_seed


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_a_seed_gives_the_numbers_of_transformers() -> None:
    transformers.set_seed(7)
    expected = drawn()
    set_seed(7)
    assert drawn() == expected


def test_a_state_is_put_back_whole() -> None:
    state = rng_state()
    first = drawn()
    set_rng_state(state)
    assert drawn() == first


def test_what_is_drawn_within_is_not_missed_without() -> None:
    set_seed(1)
    expected = drawn()
    set_seed(1)
    with preserved_rng():
        drawn()
    assert drawn() == expected


def test_derived_seeds_depend_on_every_part_and_its_place() -> None:
    seeds = {derived_seed(*parts) for parts in [(1, 2, 3), (1, 3, 2), (12, 3), (1, 23), (2, 2, 3)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
