"""``initContainers`` and ``sidecars`` of ``spec.podTemplate``: containers before and beside the trainer."""

from __future__ import annotations

from typing import Any

from trainwright_operator.api import formats, names
from trainwright_operator.api.types import (
    Rule,
    Schema,
    boolean,
    exactly_one,
    integer,
    list_of,
    map_of,
    record,
    string,
)
from trainwright_operator.api.volumes import OWNED

MAX_CONTAINERS = 8


def init_containers(env_var: Schema, env_source: Schema) -> Schema:
    return list_of(
        "Containers that run to completion, one after another, before the trainer starts.",
        _container(env_var, env_source, {}),
        MAX_CONTAINERS,
        key="name",
    )


def sidecars(env_var: Schema, env_source: Schema) -> Schema:
    return list_of(
        "Containers that run beside the trainer: they start before it and before initContainers, and stop with it.",
        _container(env_var, env_source, {"startupProbe": _probe()}),
        MAX_CONTAINERS,
        key="name",
    )


def _container(env_var: Schema, env_source: Schema, more: dict[str, Schema]) -> Schema:
    amounts = map_of("By resource: cpu, memory, ephemeral-storage.", formats.quantity("An amount."), 16)
    return record(
        "A container, under the restricted Pod Security Standard.",
        {
            "name": string("The container's name in the pod.", 63, least=1, pattern=formats.LABEL),
            "image": string("The image. Default: the trainer's.", 1024, least=1, pattern=formats.NO_SPACE),
            "imagePullPolicy": string(
                "When the node pulls it. Default: Always for the tag latest, else IfNotPresent.",
                among=["Always", "IfNotPresent", "Never"],
            ),
            "command": _texts("The command. Default: the image's entrypoint."),
            "args": _texts("Arguments of the command. Default: the image's."),
            "workingDir": string("The working directory. Default: the image's.", 1024, pattern=formats.ABSOLUTE_PATH),
            "env": list_of("Environment variables of the container.", env_var, 32, key="name"),
            "envFrom": list_of("ConfigMaps and Secrets whose every key becomes a variable.", env_source, 8),
            "resources": record("Resources of the container.", {"requests": amounts, "limits": amounts}),
            "volumeMounts": list_of("Where the volumes are mounted.", _mount(), 16, key="mountPath"),
            "securityContext": record(
                "User and group of the container.",
                {
                    "runAsUser": integer("The user ID; root is not allowed. Default: 1000.", 1),
                    "runAsGroup": integer("The group ID. Default: 1000.", 1),
                    "readOnlyRootFilesystem": boolean(
                        "Whether the container's root filesystem is read-only. Default: false."
                    ),
                },
            ),
            **more,
        },
        required=["name"],
        rules=[
            Rule(
                f"self.name != '{names.CONTAINER}' && !self.name.startsWith('{OWNED}')",
                f"{names.CONTAINER} and names that begin with {OWNED} are reserved for the operator; use another name",
                lambda container: container["name"] != names.CONTAINER and not container["name"].startswith(OWNED),
                field="name",
                needs=("name",),
            )
        ],
    )


def _texts(about: str) -> Schema:
    return list_of(about, string("An argument.", 16384), 64)


def _mount() -> Schema:
    return record(
        "A mount.",
        {
            "name": string(
                f"A volume of podTemplate.volumes, or {names.VOLUME_OUTPUT} for the job's output.",
                63,
                least=1,
                pattern=formats.LABEL,
            ),
            "mountPath": string("The path in the container.", 1024, least=1, pattern=formats.ABSOLUTE_PATH),
            "subPath": string(
                "Mount this folder of the volume. Default: the root; for the output, the folder of the job.",
                1024,
                pattern=formats.RELATIVE_PATH,
            ),
            "readOnly": boolean("Mount it read-only. Default: false."),
        },
        required=["name", "mountPath"],
    )


def _probe() -> Schema:
    port = integer("The port.", 1, 65535)
    handlers = {
        "exec": record("A command that exits with 0.", {"command": _texts("The command.")}, required=["command"]),
        "httpGet": record(
            "An HTTP response with a status below 400.",
            {
                "path": string("The path. Default: /.", 1024, pattern=formats.NO_SPACE),
                "port": port,
                "scheme": string("The scheme. Default: HTTP.", among=["HTTP", "HTTPS"]),
            },
            required=["port"],
        ),
        "tcpSocket": record("A TCP port that is open.", {"port": port}, required=["port"]),
    }
    return record(
        "A check that must succeed before the next container starts.",
        {
            **handlers,
            "periodSeconds": integer("Seconds between two attempts. Default: 10.", 1, 3600),
            "timeoutSeconds": integer("Seconds until an attempt times out. Default: 1.", 1, 3600),
            "failureThreshold": integer("Failed attempts until the container is restarted. Default: 3.", 1, 10000),
        },
        rules=[exactly_one(handlers, f"give exactly one of {', '.join(handlers)}")],
    )


def names_are_unique() -> Rule:
    def holds(pod: dict[str, Any]) -> bool:
        return not _names(pod, "initContainers") & _names(pod, "sidecars")

    return Rule(
        "!has(self.initContainers) || !has(self.sidecars) || "
        "self.sidecars.all(c, !self.initContainers.exists(i, i.name == c.name))",
        "a sidecar has the same name as an init container; use another name",
        holds,
        field="sidecars",
        needs=("initContainers", "sidecars"),
    )


def _names(pod: dict[str, Any], field: str) -> set[str]:
    return {container["name"] for container in pod.get(field, ())}


def mounts_have_volumes(field: str) -> Rule:
    def holds(pod: dict[str, Any]) -> bool:
        known = {names.VOLUME_OUTPUT, *(volume["name"] for volume in pod.get("volumes", ()))}
        return all(mount["name"] in known for one in pod.get(field, ()) for mount in one.get("volumeMounts", ()))

    return Rule(
        f"!has(self.{field}) || self.{field}.all(c, !has(c.volumeMounts) || c.volumeMounts.all(m, "
        f"m.name == '{names.VOLUME_OUTPUT}' || has(self.volumes) && self.volumes.exists(v, v.name == m.name)))",
        f"every mount must name one of podTemplate.volumes, or {names.VOLUME_OUTPUT}; add the volume",
        holds,
        field=field,
        needs=("volumes", field),
    )
