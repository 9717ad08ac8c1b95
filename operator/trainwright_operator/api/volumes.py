"""The volumes that a job may mount, under Kubernetes' field names."""

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
                f"begins with {OWNED}, which is reserved for the operator; use another name",
                lambda volume: not volume["name"].startswith(OWNED),
                field="name",
                needs=("name",),
            ),
        ],
    )


def claim() -> Schema:
    return record(
        "A PersistentVolumeClaim in the job's namespace; several nodes need ReadWriteMany.",
        {
            "claimName": formats.object_name("The claim's name."),
            "readOnly": boolean("Mount it read-only. Default: false."),
        },
        required=["claimName"],
    )


def empty_dir() -> Schema:
    return record(
        "A folder that is empty at first and deleted with the pod.",
        {
            "medium": string(
                "The medium: '' is the node's disk, Memory is a tmpfs. Default: ''.", among=["", "Memory"]
            ),
            "sizeLimit": formats.quantity("The maximum size. Default: no limit."),
        },
    )


def host_path() -> Schema:
    kinds = ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File"]
    return record(
        "A path of the node; several nodes do not share it. Restricted namespaces forbid it.",
        {
            "path": string("The path on the node.", 1024, least=1, pattern=formats.ABSOLUTE_PATH),
            "type": string("What must exist at the path; '' means no check. Default: ''.", among=kinds),
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
        f"A {kind} in the job's namespace; each key is a file.",
        {
            name: formats.object_name(f"The {kind}'s name."),
            "items": list_of("The keys to mount. Default: all.", item, 64),
            "defaultMode": integer("Permission bits of the files; YAML reads 0644 as octal. Default: 0644.", 0, 0o777),
            "optional": boolean("Start even if it does not exist. Default: false."),
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
        "An ephemeral volume of a CSI driver, such as a bucket of an object store.",
        {
            "driver": string("The driver, such as gcsfuse.csi.storage.gke.io.", 253, least=1, pattern=formats.NO_SPACE),
            "readOnly": boolean("Mount it read-only. Default: false."),
            "fsType": string("The file system to mount. Default: the driver's.", 63),
            "volumeAttributes": map_of("Attributes for the driver.", string("The attribute's value.", 1024), 64),
            "nodePublishSecretRef": secret,
        },
        required=["driver"],
    )


def _image() -> Schema:
    return record(
        "An OCI image or artifact as a read-only folder, such as a model in a registry.",
        {
            "reference": string("The image.", 1024, least=1, pattern=formats.NO_SPACE),
            "pullPolicy": string(
                "When the node pulls it. Default: Always for the tag latest, else IfNotPresent.",
                among=["Always", "IfNotPresent", "Never"],
            ),
        },
        required=["reference"],
    )
