"""Maps the paths of a pod to this machine: every mount becomes a folder here, and references to it are rewritten."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainwright.contract import OUTPUT_DIR, UserError
from trainwright_operator.api import names

Object = Mapping[str, Any]

PLANNED = frozenset({names.VOLUME_JOB, "trainwright-home", "trainwright-tmp", "trainwright-shm", names.REQUIREMENTS})
"""Volumes of the plan that need no folder: the runner writes the job file, and this machine has the others."""


class Mounts:
    """Paths of a pod, and the folders that replace them on this machine."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        longest_first = sorted(folders, key=len, reverse=True)
        self._pattern = re.compile(rf"(?:^|(?<==))({'|'.join(map(re.escape, longest_first))})(?=/|$)")

    @staticmethod
    def of(pod_spec: Object, output: Path, volumes: Mapping[str, Path], scratch: Path) -> Mounts:
        """``volumes`` are the folders given by name.

        Raises:
            UserError: a volume has no folder here, or a folder was given for a volume that the job does not have.
        """
        by_name = {volume["name"]: volume for volume in pod_spec["volumes"]}
        mounts = pod_spec["containers"][0]["volumeMounts"]
        _check_names(volumes, by_name)
        folders = {}
        for mount in mounts:
            name = mount["name"]
            if name not in PLANNED and name != names.VOLUME_OUTPUT:
                root = volumes.get(name) or _folder(by_name[name], scratch)
                folders[mount["mountPath"].rstrip("/")] = root / mount.get("subPath", "")
        return Mounts({OUTPUT_DIR: output, **folders})

    def here(self, text: str) -> str:
        """Converts a path in the pod, or ``--option=PATH``, to a path on this machine. Other text is unchanged."""
        return self._pattern.sub(lambda match: str(self.folders[match[1]]), text)

    def rewrite(self, value: Any) -> Any:
        """:meth:`here` on every text of a JSON value."""
        if isinstance(value, str):
            return self.here(value)
        if isinstance(value, Mapping):
            return {key: item if key == "inline" else self.rewrite(item) for key, item in value.items()}
        return [self.rewrite(item) for item in value] if isinstance(value, list) else value


def _check_names(volumes: Iterable[str], known: Mapping[str, Object]) -> None:
    for name in volumes:
        if name not in known or name in PLANNED:
            theirs = [each for each in known if not each.startswith("trainwright-")]
            has = f"it has {', '.join(theirs)}" if theirs else "it has none"
            raise UserError(f"--volume {name}: the job has no volume of that name in podTemplate.volumes; {has}")


def _folder(volume: Object, scratch: Path) -> Path:
    name = str(volume["name"])
    if "hostPath" in volume:
        return Path(volume["hostPath"]["path"])
    if "emptyDir" in volume:
        folder = scratch / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    kind = next(key for key in volume if key != "name")
    raise UserError(
        f"podTemplate.volumes: {name} is a {kind}, which this machine does not have; add --volume {name}=DIR"
    )


def resolved_job(resolved: str, mounts: Mounts, config_maps: Mapping[str, Path]) -> str:
    """The resolved job with paths of this machine; a script in a ConfigMap becomes the file of its key."""
    job = json.loads(resolved)
    script = job.get("script") or {}
    if reference := script.pop("configMap", None):
        script["path"] = str(_script(reference, config_maps))
    return json.dumps(mounts.rewrite(job))


def _script(reference: Object, config_maps: Mapping[str, Path]) -> Path:
    name, key = str(reference["name"]), str(reference["key"])
    if name not in config_maps:
        raise UserError(
            f"spec.script.configMap: {name} does not exist here; add --config-map {name}=DIR with {key} in it"
        )
    return config_maps[name] / key
