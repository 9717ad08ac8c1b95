"""Containers beside the trainer's: some run to their end before it starts, others run along (native sidecars)."""

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
        "Containers that run to their end, one after the other, before the trainer starts.",
        _container(env_var, env_source, {}),
        MAX_CONTAINERS,
        key="name",
    )


def sidecars(env_var: Schema, env_source: Schema) -> Schema:
    return list_of(
        "Containers that run beside the trainer: they start before it and before initContainers, and end with it.",
        _container(env_var, env_source, {"startupProbe": _probe()}),
        MAX_CONTAINERS,
        key="name",
    )


def _container(env_var: Schema, env_source: Schema, more: dict[str, Schema]) -> Schema:
    amounts = map_of("By resource: cpu, memory, ephemeral-storage.", formats.quantity("An amount."), 16)
    return record(
        "A container, under the restricted Pod Security Standard.",
        {
            "name": string("Its name in the pod.", 63, least=1, pattern=formats.LABEL),
            "image": string("Its image. Default: the trainer's.", 1024, least=1, pattern=formats.NO_SPACE),
            "imagePullPolicy": string(
                "When the node pulls it. Default: Always for the tag latest, else IfNotPresent.",
                among=["Always", "IfNotPresent", "Never"],
            ),
            "command": _texts("What it runs. Default: the image's entrypoint."),
            "args": _texts("Arguments of the command. Default: the image's."),
            "workingDir": string("Where it runs. Default: the image's.", 1024, pattern=formats.ABSOLUTE_PATH),
            "env": list_of("Its environment variables.", env_var, 32, key="name"),
            "envFrom": list_of("ConfigMaps and Secrets whose every key becomes a variable.", env_source, 8),
            "resources": record("What it may use.", {"requests": amounts, "limits": amounts}),
            "volumeMounts": list_of("Where it sees the volumes.", _mount(), 16, key="mountPath"),
            "securityContext": record(
                "As whom it runs.",
                {
                    "runAsUser": integer("A user's number, not root's. Default: 1000.", 1),
                    "runAsGroup": integer("A group's number. Default: 1000.", 1),
                    "readOnlyRootFilesystem": boolean("Whether its own files cannot be written. Default: false."),
                },
            ),
            **more,
        },
        required=["name"],
        rules=[
            Rule(
                f"self.name != '{names.CONTAINER}' && !self.name.startsWith('{OWNED}')",
                f"{names.CONTAINER} and names that begin with {OWNED} are the operator's; use another name",
                lambda it: it["name"] != names.CONTAINER and not it["name"].startswith(OWNED),
                field="name",
                needs=("name",),
            )
        ],
    )


def _texts(about: str) -> Schema:
    return list_of(about, string("A word.", 16384), 64)


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
                "Mount this folder of the volume. Default: its root; of the output the job's own folder.",
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
        "exec": record("A command that ends well.", {"command": _texts("The command.")}, required=["command"]),
        "httpGet": record(
            "An answer below 400 over HTTP.",
            {
                "path": string("The path. Default: /.", 1024, pattern=formats.NO_SPACE),
                "port": port,
                "scheme": string("The scheme. Default: HTTP.", among=["HTTP", "HTTPS"]),
            },
            required=["port"],
        ),
        "tcpSocket": record("A port that is open.", {"port": port}, required=["port"]),
    }
    return record(
        "What must go well before the next container is started.",
        {
            **handlers,
            "periodSeconds": integer("Seconds between two tries. Default: 10.", 1, 3600),
            "timeoutSeconds": integer("Seconds that one may take. Default: 1.", 1, 3600),
            "failureThreshold": integer("Tries until the container is started anew. Default: 3.", 1, 10000),
        },
        rules=[exactly_one(handlers, f"give exactly one of {', '.join(handlers)}")],
    )


def each_has_a_name_of_its_own() -> Rule:
    def fine(pod: dict[str, Any]) -> bool:
        return not _names(pod, "initContainers") & _names(pod, "sidecars")

    return Rule(
        "!has(self.initContainers) || !has(self.sidecars) || "
        "self.sidecars.all(c, !self.initContainers.exists(i, i.name == c.name))",
        "a sidecar has the name of an init container; use another",
        fine,
        field="sidecars",
        needs=("initContainers", "sidecars"),
    )


def _names(pod: dict[str, Any], field: str) -> set[str]:
    return {container["name"] for container in pod.get(field, ())}


def mounts_have_volumes(field: str) -> Rule:
    def fine(pod: dict[str, Any]) -> bool:
        known = {names.VOLUME_OUTPUT, *(volume["name"] for volume in pod.get("volumes", ()))}
        return all(mount["name"] in known for one in pod.get(field, ()) for mount in one.get("volumeMounts", ()))

    return Rule(
        f"!has(self.{field}) || self.{field}.all(c, !has(c.volumeMounts) || c.volumeMounts.all(m, "
        f"m.name == '{names.VOLUME_OUTPUT}' || has(self.volumes) && self.volumes.exists(v, v.name == m.name)))",
        f"every mount names one of podTemplate.volumes, or {names.VOLUME_OUTPUT}; add the volume",
        fine,
        field=field,
        needs=("volumes", field),
    )
