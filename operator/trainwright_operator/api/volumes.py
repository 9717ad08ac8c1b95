"""The kinds of volume a job may mount, under Kubernetes' own names."""

from __future__ import annotations

from trainwright_operator.api import formats
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

OWNED = "trainwright-"


def volume() -> Schema:
    """A Volume of ``spec.podTemplate.volumes``."""
    sources = {
        "persistentVolumeClaim": claim(),
        "configMap": _files("ConfigMap", "name"),
        "secret": _files("Secret", "secretName"),
        "emptyDir": empty_dir(),
        "hostPath": host_path(),
        "nfs": _nfs(),
        "csi": _csi(),
        "image": _image(),
    }
    return record(
        "A volume: a name and exactly one source.",
        {"name": string("The volume's name.", 63, least=1, pattern=formats.LABEL), **sources},
        required=["name"],
        rules=[
            exactly_one(sources, f"give exactly one source: {', '.join(sources)}"),
            Rule(
                f"!self.name.startsWith('{OWNED}')",
                f"begins with {OWNED}, as the operator's own volumes do; use another name",
                lambda it: not it["name"].startswith(OWNED),
                field="name",
                needs=("name",),
            ),
        ],
    )


def claim() -> Schema:
    return record(
        "A PersistentVolumeClaim in the job's namespace; with several nodes it must be ReadWriteMany.",
        {
            "claimName": formats.object_name("The claim's name."),
            "readOnly": boolean("Mount it read-only. Default: false."),
        },
        required=["claimName"],
    )


def empty_dir() -> Schema:
    return record(
        "A folder that begins empty and ends with the pod.",
        {
            "medium": string(
                "Where it lies: '' is the node's disk, Memory is a tmpfs. Default: ''.", among=["", "Memory"]
            ),
            "sizeLimit": formats.quantity("How large it may grow. Default: no limit."),
        },
    )


def host_path() -> Schema:
    kinds = ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File"]
    return record(
        "A path of the node itself; with several nodes each has its own. Restricted namespaces forbid it.",
        {
            "path": string("The path on the node.", 1024, least=1, pattern=formats.ABSOLUTE_PATH),
            "type": string("What must be there: '' is not checked. Default: ''.", among=kinds),
        },
        required=["path"],
    )


def _files(kind: str, name: str) -> Schema:
    item = record(
        "One key as one file.",
        {
            "key": formats.config_key("The key."),
            "path": string("The file, relative to the mount.", 1024, least=1, pattern=formats.RELATIVE_PATH),
            "mode": integer("Permission bits of the file. Default: defaultMode.", 0, 0o777),
        },
        required=["key", "path"],
    )
    return record(
        f"A {kind} in the job's namespace, each key a file.",
        {
            name: formats.object_name(f"The {kind}'s name."),
            "items": list_of("The keys to show. Default: all.", item, 64),
            "defaultMode": integer("Permission bits of the files; YAML reads 0644 as octal. Default: 0644.", 0, 0o777),
            "optional": boolean("Go on without it when it is missing. Default: false."),
        },
        required=[name],
    )


def _nfs() -> Schema:
    return record(
        "A folder of an NFS server.",
        {
            "server": string("The server's name or address.", 253, least=1, pattern=formats.NO_SPACE),
            "path": string("The exported path.", 1024, least=1, pattern=formats.ABSOLUTE_PATH),
            "readOnly": boolean("Mount it read-only. Default: false."),
        },
        required=["server", "path"],
    )


def _csi() -> Schema:
    secret = record(
        "A Secret that the driver needs to publish the volume.",
        {"name": formats.object_name("The Secret's name.")},
        required=["name"],
    )
    return record(
        "A volume that lives with the pod, by a CSI driver: an object store's bucket, for one.",
        {
            "driver": string("The driver, such as gcsfuse.csi.storage.gke.io.", 253, least=1, pattern=formats.NO_SPACE),
            "readOnly": boolean("Mount it read-only. Default: false."),
            "fsType": string("The file system to mount. Default: the driver's.", 63),
            "volumeAttributes": map_of("What the driver wants to know.", string("The attribute's value.", 1024), 64),
            "nodePublishSecretRef": secret,
        },
        required=["driver"],
    )


def _image() -> Schema:
    return record(
        "An OCI image or artefact as a read-only folder: a model in a registry, for one.",
        {
            "reference": string("The image.", 1024, least=1, pattern=formats.NO_SPACE),
            "pullPolicy": string(
                "When the node pulls it. Default: Always for the tag latest, else IfNotPresent.",
                among=["Always", "IfNotPresent", "Never"],
            ),
        },
        required=["reference"],
    )
