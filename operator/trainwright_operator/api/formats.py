"""The formats of Kubernetes' names and quantities, each with a hint for a value that does not match."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.api.types import Pattern, Rule, Schema, int_or_string, map_of, record, string

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
REQUIREMENT = Pattern(
    r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?( ?\[[-A-Za-z0-9._, ]+\])?"
    r"( ?(===?|~=|!=|<=?|>=?) ?[-A-Za-z0-9.*+!_]+( ?, ?(===?|~=|!=|<=?|>=?) ?[-A-Za-z0-9.*+!_]+)*)?$",
    "write a package and its versions, such as scikit-learn>=1.5,<2, without URLs, markers and options of pip; "
    "PIP_INDEX_URL or PIP_FIND_LINKS in podTemplate.env choose the source",
)
NO_SPACE = Pattern(r"^\S+$", "remove the whitespace")


SHORT_DOMAIN = "^([^/]{0,253}/)?[^/]*$"
KEY = Pattern(
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
    "a key is a name of at most 63 letters, digits, '-', '_' and '.', optionally with a domain and '/' before it: "
    "team, or example.com/team",
)
OWNED_KEYS = (
    f"labels and annotations of {names.GROUP} and {names.LABEL_MANAGED_BY} are reserved for the operator; "
    "use other keys"
)


def label_map(about: str, most: int = 64) -> Schema:
    return map_of(about, string("The label's value.", 63, pattern=LABEL_VALUE), most, rules=[_keys()])


def annotation_map(about: str, most: int = 64) -> Schema:
    return map_of(about, string("The annotation's value.", 16384), most, rules=[_keys()])


def _keys() -> Rule:
    """A rule, because a schema cannot restrict the keys of a map."""
    return Rule(f"self.all(k, k.matches('{KEY.expression}') && k.matches('{SHORT_DOMAIN}'))", KEY.hint, _keys_fine)


def _keys_fine(labels: Mapping[str, Any]) -> bool:
    return all(map(is_key, labels))


def is_key(text: str) -> bool:
    """Whether it can name a label or an annotation."""
    return bool(re.fullmatch(KEY.expression, text) and re.fullmatch(SHORT_DOMAIN, text))


def no_owned_keys(field: str) -> Rule:
    """The map ``field`` has no key that the operator writes on its children."""
    prefix = f"{names.GROUP}/"
    return Rule(
        f"!has(self.{field}) || self.{field}.all(k, !k.startsWith('{prefix}') && k != '{names.LABEL_MANAGED_BY}')",
        OWNED_KEYS,
        lambda metadata: (
            not any(key.startswith(prefix) or key == names.LABEL_MANAGED_BY for key in metadata.get(field, ()))
        ),
        field=field,
    )


def metadata(what: str) -> Schema:
    """Labels and annotations for the children of one kind."""
    return record(
        f"Labels and annotations for every {what} of the job.",
        {
            "labels": label_map(f"Labels for every {what}; trainwright.dev/* is reserved for the operator."),
            "annotations": annotation_map(f"Annotations for every {what}."),
        },
        rules=[no_owned_keys("labels"), no_owned_keys("annotations")],
    )


def object_name(about: str) -> Schema:
    """The name of another Kubernetes object."""
    return string(about, 253, least=1, pattern=SUBDOMAIN)


def config_key(about: str) -> Schema:
    return string(about, 253, least=1, pattern=CONFIG_KEY)


def quantity(about: str) -> Schema:
    return int_or_string(about, QUANTITY)
