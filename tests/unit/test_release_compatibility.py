"""A trainer image and an operator of two releases: what still works, and what is said where it does not."""

import json

import pytest

from builders import make_job
from scene import Scene
from trainwright.contract import ExitCode, ReleaseError, ResolvedJob

JOB = ResolvedJob("gpt", "default", "uid", 1, 2, 8)


def edited(**changes):
    return json.dumps({**json.loads(JOB.to_json()), **changes})


def test_a_field_that_asks_for_nothing_is_passed_over():
    assert ResolvedJob.from_json(edited(later=None, also=False)) == JOB


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version 2: this trainer image understands version 1, which is older than the operator"),
        ({"version": 0}, "version 0: this trainer image understands version 1, which is newer than the operator"),
        ({"version": None}, "which is newer than the operator: upgrade the operator, or use the image of"),
        ({"later": 3}, "later is not known to this trainer image, which is older than the operator: use the image of"),
    ],
)
def test_what_cannot_be_done_is_told_apart(changes, words):
    with pytest.raises(ReleaseError, match="resolved job") as told:
        ResolvedJob.from_json(edited(**changes))
    assert words in str(told.value)


def test_the_job_goes_on_once_the_image_fits():
    words = "resolved job version 2: this trainer image understands version 1, which is older than the operator"
    scene = Scene(make_job().with_("spec.maxRestarts", 0)).settle().start_pods().settle()
    scene.exit_all(int(ExitCode.MISMATCH), reason="ImageMismatch", error=words).settle()
    assert scene.state == "Failed"
    assert f"ImageMismatch: {words}" in scene.condition("Failed")["message"]
    scene.edit("spec.maxRestarts", 1).settle()
    assert scene.status["attempts"][-1]["attempt"] == 2
