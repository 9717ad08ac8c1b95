"""``spec.script.requirements``: what pip is asked for, what is kept, and what a failure says."""

from __future__ import annotations

import importlib.metadata

import pytest

from builders import make_job
from trainwright.contract import ResolvedJob, UserError
from trainwright.launch import requirements, runtime
from trainwright.launch.requirements import InstallError, cached, constraints, problem
from trainwright_operator.api import names
from trainwright_operator.core.children import children
from trainwright_operator.core.observe import observe
from trainwright_operator.core.placement.pools import BUILTIN, place

ASKED = ["scikit-learn>=1.5", "peft"]
INLINE = {"inline": "import sklearn"}


def planned(script, **template):
    built = make_job().script(**script).with_("spec.podTemplate", template).build()
    return children(built, place(built, BUILTIN["cpu"]), 1)[-1]["spec"]["template"]


def test_an_init_container_installs_them_as_the_trainer_would_run():
    index = {"name": "PIP_INDEX_URL", "value": "https://pypi.example/simple"}
    resources = {"limits": {"memory": "4Gi", "cpu": "2"}}
    spec = planned({**INLINE, "requirements": ASKED}, env=[index], resources=resources)["spec"]
    (installer,), (trainer,) = spec["initContainers"], spec["containers"]
    assert installer["name"] == names.REQUIREMENTS
    assert installer["command"] == ["python", "-m", "trainwright.launch.requirements"]
    for same in ("image", "env", "volumeMounts", "securityContext", "terminationMessagePath"):
        assert installer[same] == trainer[same]
    assert index in installer["env"]
    assert installer["resources"]["limits"] == {"memory": "4Gi", "cpu": "2"}
    assert {"name": names.REQUIREMENTS, "emptyDir": {}} in spec["volumes"]


def test_it_comes_after_the_init_containers_that_bring_wheels():
    spec = planned({**INLINE, "requirements": ASKED}, initContainers=[{"name": "bring"}])["spec"]
    assert [one["name"] for one in spec["initContainers"]] == ["bring", names.REQUIREMENTS]


def test_a_job_without_them_has_neither_container_nor_volume_nor_variable():
    template = planned(INLINE)
    assert names.REQUIREMENTS not in str(template)
    assert "PACKAGES_DIR" not in str(template)


def test_an_older_image_refuses_what_it_would_not_install():
    annotations = planned({**INLINE, "requirements": ASKED})["metadata"]["annotations"]
    job = ResolvedJob.from_json(annotations[names.ANNOTATION_RESOLVED_JOB])
    assert job.requirements == ASKED
    assert "requirements" not in job.script


def test_the_ranks_find_them_before_what_the_job_puts_on_the_path():
    environment = {"TRAINWRIGHT_PACKAGES_DIR": "/packages", "PYTHONPATH": "/libraries"}
    runtime.import_packages(environment)
    assert environment["PYTHONPATH"] == "/packages:/libraries"


def test_what_is_installed_keeps_its_version_unless_it_is_named():
    kept = constraints(["PyYAML>=6", "cowsay"])
    assert f"pytest=={importlib.metadata.version('pytest')}" in kept
    assert not [one for one in kept if one.startswith("pyyaml==")]


def test_the_key_is_of_the_list_and_not_of_its_order():
    assert requirements.key(["a", "b >= 1"]) == requirements.key(["b>=1", "A"])
    assert requirements.key(["a"]) != requirements.key(["a==1"])


def test_a_folder_of_the_cache_is_whole_and_made_once(tmp_path):
    def fails(folder):
        (folder / "half").touch()
        raise InstallError("no network")

    with pytest.raises(InstallError):
        cached(tmp_path, ["a"], fails)
    assert list(tmp_path.iterdir()) == []
    made = cached(tmp_path, ["a"], lambda folder: (folder / "whole").touch())
    assert cached(tmp_path, ["a"], fails) == made
    assert [one.name for one in made.iterdir()] == ["whole"]


def test_two_pods_may_fill_the_cache_at_once(tmp_path):
    def beaten(folder):
        (folder / "mine").touch()
        (tmp_path / requirements.key(["a"])).mkdir()
        (tmp_path / requirements.key(["a"]) / "theirs").touch()

    assert [one.name for one in cached(tmp_path, ["a"], beaten).iterdir()] == ["theirs"]
    assert len(list(tmp_path.iterdir())) == 1


NEVER = "ERROR: Could not find a version that satisfies the requirement {} (from versions: {})\n"
MISSING = NEVER + "ERROR: No matching distribution found for {}\n"


@pytest.mark.parametrize(
    ("output", "environment", "kind", "said"),
    [
        (MISSING.format("sclearn", "none", "sclearn"), {}, UserError, "sclearn is not in the package index; correct"),
        (MISSING.format("a==9", "1.0, 2.0", "a==9"), {}, UserError, "the newest version that fits this Python is 2.0"),
        (MISSING.format("a", "none", "a"), {"PIP_NO_INDEX": "1"}, UserError, "a is not in PIP_FIND_LINKS; correct"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)'\n"
            + MISSING.format("a", "none", "a"),
            {},
            InstallError,
            "the package index cannot be reached; set PIP_INDEX_URL",
        ),
        (
            "ERROR: Cannot install a because these package versions have conflicting dependencies.\n"
            "The conflict is caused by:\n    a 1.0 depends on torch>=9\n"
            "    The user requested (constraint) torch==2.9\n",
            {},
            UserError,
            "do not fit together: a 1.0 depends on torch>=9; the image has torch==2.9; change the list",
        ),
        ("/bin/python: No module named pip\n", {}, UserError, "this Python has no pip"),
        ("ERROR: Could not install packages: [Errno 28] No space left\n", {}, InstallError, "No space left"),
    ],
)
def test_a_failure_is_one_line_and_a_mistake_is_told_from_a_network(output, environment, kind, said):
    found = problem(output, environment)
    assert type(found) is kind
    assert said in str(found)
    assert "\n" not in str(found)


def test_its_exit_code_and_message_decide_as_the_trainers_would():
    job = make_job().build()
    word = '{"reason":"BadConfiguration","exit_code":64,"error":"spec.script.requirements: x is not in the index"}'
    ended = {"exitCode": 64, "message": word, "finishedAt": "2026-01-01T00:00:00Z"}
    pod = {
        "metadata": {
            "name": f"{job.name}-0-1-0",
            "generateName": f"{job.name}-0-1-0-",
            "labels": {
                names.LABEL_JOB: job.name,
                names.LABEL_JOB_UID: job.uid,
                names.LABEL_ATTEMPT: "1",
                names.LABEL_SLICE: "0",
            },
        },
        "status": {
            "phase": "Failed",
            "initContainerStatuses": [{"name": names.REQUIREMENTS, "state": {"terminated": ended}}],
        },
    }
    (found,) = observe(job, [], [pod]).attempts[0].pods
    assert (found.end.exit_code, found.end.word.error) == (64, "spec.script.requirements: x is not in the index")
