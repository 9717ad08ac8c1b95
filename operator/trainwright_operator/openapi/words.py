"""The patterns of Kubernetes' names and quantities, each with the words for who missed it."""

from __future__ import annotations

from trainwright_operator.openapi.types import Pattern, Schema, int_or_string, map_of, string

LABEL = Pattern(
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "use lower-case letters, digits and '-', beginning and ending with a letter or digit",
)
HOST_LABEL = Pattern(
    r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
    "use lower-case letters, digits and '-', beginning with a letter and ending with a letter or digit",
)
HOST_BEGINNING = Pattern(r"^[a-z][-a-z0-9]*$", "use lower-case letters, digits and '-', beginning with a letter")
SUBDOMAIN = Pattern(
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    "use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit",
)
LABEL_VALUE = Pattern(
    r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
    "use letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
)
QUALIFIED = Pattern(
    r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    "write a name such as nvidia.com/gpu: an optional domain and '/', then letters, digits, '-', '_' and '.'",
)
QUANTITY = Pattern(
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
    "write a quantity such as 4, 500m or 16Gi",
)
CONFIG_KEY = Pattern(r"^[-._a-zA-Z0-9]+$", "use letters, digits, '-', '_' and '.'")
ENV_NAME = Pattern(r"^[^=\x00-\x1f\x7f]+$", "use printable characters without '='")
ABSOLUTE_PATH = Pattern(r"^/[^:]*$", "write an absolute path, beginning with '/' and without ':'")
RELATIVE_PATH = Pattern(
    r"^([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+)(/([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+))*$",
    "write a path relative to the volume, without '..', such as team-a/gpt",
)
NO_SPACE = Pattern(r"^\S+$", "remove the white space")


def label_map(about: str, most: int = 64) -> Schema:
    return map_of(about, string("The label's value.", 63, pattern=LABEL_VALUE), most)


def object_name(about: str) -> Schema:
    """The name of another Kubernetes object."""
    return string(about, 253, least=1, pattern=SUBDOMAIN)


def config_key(about: str) -> Schema:
    return string(about, 253, least=1, pattern=CONFIG_KEY)


def quantity(about: str) -> Schema:
    return int_or_string(about, QUANTITY)
