"""One idea of what somebody meant, for the Trainer's arguments, a manifest's fields and the names in data."""

from __future__ import annotations

import pytest

from trainwright.nearest import did_you_mean, nearest, some

NAMES = ["maxSteps", "saveSteps", "warmupSteps", "text"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("max_steps", "maxSteps"),
        ("MaxSteps", "maxSteps"),
        ("max.steps", "maxSteps"),
        ("warm", "warmupSteps"),
        ("savSteps", "saveSteps"),
        ("txt", "text"),
        ("wa", None),
        ("learningRate", None),
        (["maxSteps"], None),
        (None, None),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(word: object, meant: str | None) -> None:
    assert nearest(word, NAMES) == meant
    assert did_you_mean(word, NAMES) == (f"; did you mean {meant}?" if meant else "")


def test_the_same_name_goes_before_a_longer_one() -> None:
    assert nearest("save_steps", ["saveStepsAndMore", "saveSteps"]) == "saveSteps"


def test_some_names_are_listed_and_the_rest_counted() -> None:
    assert some("abc") == "a, b, c"
    assert some("abcde", most=3) == "a, b, c and 2 more"
