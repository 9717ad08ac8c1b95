"""What is left of a failed test to look at: its objects, their events, the pods' logs and the programs' logs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import urllib3
import yaml

from cluster.kube import ApiError, Kube, Object, summary
from cluster.say import ClusterError

KINDS = ("TrainingJob", "Job", "Pod", "Service", "PersistentVolumeClaim", "Secret", "ConfigMap")
LOG_BYTES = 200_000


def save(kube: Kube, folder: Path, namespaces: Iterable[str], logs: Path | None = None) -> Path:
    """Write what can still be had into ``folder`` and return it; what cannot is said in errors.txt."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for namespace in namespaces:
        for kind in KINDS:
            _attempt(folder, _save_kind, kube, folder, namespace, kind)
        _attempt(folder, _save_events, kube, folder, namespace)
        _attempt(folder, _save_pod_logs, kube, folder, namespace)
    _attempt(folder, _write_objects, folder / "nodes.yaml", kube, "Node", None)
    if logs is not None:
        _save_tails(logs, folder / "programs")
    return folder


def _attempt(folder: Path, save_part, *arguments) -> None:
    """A failed test may leave a cluster that no longer answers: keep what it still says."""
    try:
        save_part(*arguments)
    except (ApiError, ClusterError, urllib3.exceptions.HTTPError) as error:
        with (folder / "errors.txt").open("a") as file:
            file.write(f"{save_part.__name__} {arguments[1:]}: {error}\n")


def _save_kind(kube: Kube, folder: Path, namespace: str, kind: str) -> None:
    _write_objects(folder / f"{namespace}-{kind.lower()}s.yaml", kube, kind, namespace)


def _write_objects(path: Path, kube: Kube, kind: str, namespace: str | None) -> None:
    objects = kube.list(kind, namespace)
    for obj in objects:
        obj["metadata"].pop("managedFields", None)
        if kind == "Secret":
            obj["data"] = dict.fromkeys(obj.get("data", {}), "(not saved)")
    if objects:
        lines = "".join(f"# {summary(obj)}\n" for obj in objects)
        path.write_text(lines + yaml.safe_dump_all(objects, sort_keys=False))


def _save_events(kube: Kube, folder: Path, namespace: str) -> None:
    events = sorted(kube.list("Event", namespace), key=_event_time)
    lines = [f"{_event_time(e)} {e['type']} {_about(e)} {e.get('reason')}: {e.get('message')}\n" for e in events]
    (folder / f"{namespace}-events.txt").write_text("".join(lines))


def _event_time(event: Object) -> str:
    return event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]


def _about(event: Object) -> str:
    about = event["involvedObject"]
    return f"{about.get('kind')}/{about.get('name')}"


def _save_pod_logs(kube: Kube, folder: Path, namespace: str) -> None:
    for pod in kube.list("Pod", namespace):
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            _attempt(folder, _save_log, kube, folder, namespace, pod["metadata"]["name"], container["name"])


def _save_log(kube: Kube, folder: Path, namespace: str, pod: str, container: str) -> None:
    text = kube.logs(pod, namespace, container=container, limitBytes=str(LOG_BYTES))
    if text:
        (folder / f"{namespace}-{pod}-{container}.log").write_text(text)


def _save_tails(logs: Path, folder: Path) -> None:
    folder.mkdir()
    for log in logs.glob("*.log"):
        (folder / log.name).write_bytes(log.read_bytes()[-LOG_BYTES:])
