"""What GitOps tools make of a TrainingJob's status, at every moment of its life, by their own published rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders import make_job
from scene import Scene

ROOT = Path(__file__).parents[2]
HEALTH = ROOT / "charts" / "argocd" / "health.lua"


def kstatus(obj: dict[str, Any]) -> str:
    """The rules of kstatus for a kind that it does not know: what Flux, kpt and `helm --wait` go by."""
    if "deletionTimestamp" in obj["metadata"]:
        return "Terminating"
    status = obj.get("status") or {}
    if "observedGeneration" in status and status["observedGeneration"] != obj["metadata"]["generation"]:
        return "InProgress"
    holds = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    if holds.get("Reconciling") == "True":
        return "InProgress"
    if holds.get("Stalled") == "True":
        return "Failed"
    return "Current" if holds.get("Ready", "True") == "True" else "InProgress"


def argo(obj: dict[str, Any]) -> str:
    """What the health script gives, run as Argo CD runs it: with the object as ``obj``."""
    lua = pytest.importorskip("lupa", reason="lupa runs the health script of Argo CD (pip install lupa)").LuaRuntime()
    lua.globals()["obj"] = lua.table_from(obj, recursive=True)
    return str(lua.execute(HEALTH.read_text())["status"])


def life() -> list[tuple[str, dict[str, Any]]]:
    """Every state of one job that is disrupted, fails, is suspended, resumed and trained on; as stored each time."""
    scene = Scene(make_job().nodes(2))
    moments = [("new", stored(scene))]
    acts: list[tuple[str, Callable[[], object]]] = [
        ("created", lambda: None),
        ("running", scene.start_pods),
        ("evicted", lambda: (scene.evict(1), scene.exit_all(143))),
        ("running again", scene.start_pods),
        ("failed once", lambda: scene.exit_all(1)),
        ("waiting for the next attempt", lambda: None),
        ("after the pause", lambda: scene.wait(30)),
        ("running a third time", scene.start_pods),
        ("told to stop", lambda: scene.edit("spec.suspend", True)),
        ("stopped", lambda: scene.exit_all(143)),
        ("resumed", lambda: scene.edit("spec.suspend", False)),
        ("at work", scene.start_pods),
        ("succeeded", lambda: scene.exit_all(0)),
        ("given more steps", lambda: scene.edit("spec.trainingArguments.maxSteps", 400)),
        ("going on", scene.start_pods),
        ("bad data", lambda: scene.exit_all(65)),
    ]
    for name, act in acts:
        act()
        moments.append((f"{name}, unseen", stored(scene)))
        scene.wait(3).settle()
        moments.append((name, stored(scene)))
    return moments


def stored(scene: Scene) -> dict[str, Any]:
    obj = scene.builder.manifest()
    return json.loads(json.dumps({**obj, "status": scene.status} if scene.status else obj))


WANTED = {
    "created": ("InProgress", "Progressing"),
    "running": ("Current", "Healthy"),
    "evicted": ("InProgress", "Progressing"),
    "running again": ("Current", "Healthy"),
    "failed once": ("InProgress", "Progressing"),
    "after the pause": ("InProgress", "Progressing"),
    "running a third time": ("Current", "Healthy"),
    "told to stop, unseen": ("InProgress", "Progressing"),
    "told to stop": ("InProgress", "Progressing"),
    "stopped": ("Current", "Suspended"),
    "resumed, unseen": ("InProgress", "Progressing"),
    "resumed": ("InProgress", "Progressing"),
    "at work": ("Current", "Healthy"),
    "succeeded": ("Current", "Healthy"),
    "given more steps, unseen": ("InProgress", "Progressing"),
    "given more steps": ("InProgress", "Progressing"),
    "going on": ("Current", "Healthy"),
    "bad data": ("Failed", "Degraded"),
}


@pytest.fixture(scope="module")
def moments() -> dict[str, dict[str, Any]]:
    return dict(life())


@pytest.mark.parametrize("moment", WANTED)
def test_flux_and_helm_see_the_health_of_a_job_at_every_moment(moments: dict[str, dict[str, Any]], moment: str) -> None:
    assert kstatus(moments[moment]) == WANTED[moment][0], moments[moment]["status"]["state"]


@pytest.mark.parametrize("moment", WANTED)
def test_argo_cd_sees_the_health_of_a_job_at_every_moment(moments: dict[str, dict[str, Any]], moment: str) -> None:
    assert argo(moments[moment]) == WANTED[moment][1], moments[moment]["status"]["state"]


def test_a_job_that_no_operator_has_seen_is_not_healthy(moments: dict[str, dict[str, Any]]) -> None:
    assert argo(moments["new"]) == "Progressing"


def test_a_job_is_never_reconciling_and_stalled_at_once(moments: dict[str, dict[str, Any]]) -> None:
    """kstatus asks for it: an object is either worked on, or it cannot go on, or neither."""
    for obj in moments.values():
        holds = {one["type"] for one in obj.get("status", {}).get("conditions", ()) if one["status"] == "True"}
        assert not holds >= {"Reconciling", "Stalled"}


def test_every_condition_says_of_which_generation_it_speaks(moments: dict[str, dict[str, Any]]) -> None:
    for obj in moments.values():
        status = obj.get("status", {})
        for condition in status.get("conditions", ()):
            assert condition["observedGeneration"] == status["observedGeneration"]


def test_the_manual_shows_the_health_script_as_it_is() -> None:
    manual = (ROOT / "docs" / "gitops.md").read_text()
    indented = "".join(f"    {line}" if line.strip() else line for line in HEALTH.read_text().splitlines(keepends=True))
    assert indented in manual
