"""The Dockerfiles, with the targets that nobody builds without an accelerator: linted, and read stage by stage."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from cluster.paths import CHECKOUT

Instruction = dict[str, str]

TRAINER, OPERATOR = CHECKOUT / "trainer_image/Dockerfile", CHECKOUT / "operator/Dockerfile"
OF_TRAINER = ("cpu", "nvidia", "amd", "tpu", "tpu-xla", "cpu-deepspeed", "nvidia-deepspeed")
TARGETS = [*((TRAINER, target) for target in OF_TRAINER), (OPERATOR, "")]
HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent) or "hadolint"


def stages(dockerfile: Path) -> dict[str, tuple[str, list[Instruction]]]:
    """Each stage's base and instructions by its name; the last one without a name is called ""."""
    found: dict[str, tuple[str, list[Instruction]]] = {}
    current: list[Instruction] = []
    with dockerfile.open("rb") as file:
        for one in DockerfileParser(fileobj=file).structure:
            if one["instruction"] == "FROM":
                base, _, name = one["value"].partition(" AS ")
                current = []
                found[name] = (base, current)
            else:
                current.append(one)
    return found


def lineage(dockerfile: Path, target: str) -> list[str]:
    """The target's stages, from what it is built from to itself."""
    known, names = stages(dockerfile), [target]
    while known[names[0]][0] in known:
        names.insert(0, known[names[0]][0])
    return names


def values(dockerfile: Path, target: str, instruction: str) -> list[str]:
    """What an instruction says in all stages of the target, in order."""
    known = stages(dockerfile)
    every = (one for name in lineage(dockerfile, target) for one in known[name][1])
    return [one["value"] for one in every if one["instruction"] == instruction]


@pytest.mark.parametrize("dockerfile", [TRAINER, OPERATOR], ids=lambda path: path.parent.name)
def test_the_linter_has_nothing_to_say(dockerfile: Path) -> None:
    done = subprocess.run([HADOLINT, "--format=json", dockerfile], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(("dockerfile", "target"), TARGETS)
def test_a_target_begins_at_the_base_that_the_build_names(dockerfile: Path, target: str) -> None:
    known = stages(dockerfile)
    assert known[lineage(dockerfile, target)[0]][0] == "${BASE}"
    assert "ARG BASE=python:3.13-slim\n" in dockerfile.read_text().split("FROM")[0]


@pytest.mark.parametrize(("dockerfile", "target"), TARGETS)
def test_a_target_runs_as_a_user_by_number(dockerfile: Path, target: str) -> None:
    """Restricted Pod Security cannot tell a name from root."""
    assert values(dockerfile, target, "USER")[-1] == "1000:1000"


@pytest.mark.parametrize(("dockerfile", "target"), TARGETS)
def test_a_target_starts_what_pods_start(dockerfile: Path, target: str) -> None:
    module = "trainwright_operator.main" if dockerfile is OPERATOR else "trainwright.launcher"
    assert json.loads(values(dockerfile, target, "ENTRYPOINT")[-1]) == ["python", "-m", module]


@pytest.mark.parametrize(("dockerfile", "target"), TARGETS)
def test_our_code_is_the_last_layer_of_a_target(dockerfile: Path, target: str) -> None:
    last = values(dockerfile, target, "RUN")[-1]
    assert "from=wheel" in last
    assert last.endswith("pip install --quiet --no-deps /wheels/*.whl")


@pytest.mark.parametrize("dockerfile", [TRAINER, OPERATOR], ids=lambda path: path.parent.name)
def test_all_that_is_copied_is_there(dockerfile: Path) -> None:
    known = stages(dockerfile)
    for _, instructions in known.values():
        for one in (each for each in instructions if each["instruction"] == "COPY"):
            *sources, _ = [word for word in shlex.split(one["value"]) if not word.startswith("--")]
            stage = next((w.removeprefix("--from=") for w in one["value"].split() if w.startswith("--from=")), None)
            assert stage in known if stage else all((CHECKOUT / source).exists() for source in sources), one["content"]


@pytest.mark.parametrize("dockerfile", [TRAINER, OPERATOR], ids=lambda path: path.parent.name)
def test_no_image_is_named_without_a_version(dockerfile: Path) -> None:
    for base, _ in stages(dockerfile).values():
        assert base == "${BASE}" or base in stages(dockerfile), f"{base} is neither the named base nor a stage"
    assert "latest" not in dockerfile.read_text()


def test_no_target_is_left_out() -> None:
    ends = set(stages(TRAINER)) - {base for base, _ in stages(TRAINER).values()} - {"wheel", "requirements"}
    assert {target for dockerfile, target in TARGETS if dockerfile is TRAINER} == ends


def test_each_vendor_has_its_torch() -> None:
    """By what is written: none of these can be built without the vendor's index or an hour of downloads."""
    runs = {target: " ".join(values(TRAINER, target, "RUN")) for _, target in TARGETS if target}
    assert "trim.py" in runs["cpu"]
    assert "trim.py" not in runs["nvidia"] + runs["amd"] + runs["tpu"]
    assert '--index-url "${TORCH_INDEX}" torch' in runs["amd"]
    assert "torch-tpu" in runs["tpu"]
    assert "requirements.py /src/pyproject.toml trainer hf xla" in runs["tpu-xla"]
    assert "libtpu==" in runs["tpu-xla"]
    for target in ("cpu-deepspeed", "nvidia-deepspeed"):
        assert "requirements.py /src/pyproject.toml deepspeed" in runs[target]
        assert "--no-build-isolation" in runs[target]
