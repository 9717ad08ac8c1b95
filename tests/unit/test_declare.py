"""One declaration of an object: the schema, the default in prose and the parser all come from the dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from trainwright_operator.api import declare
from trainwright_operator.api.declare import Default, Missing, Mutable
from trainwright_operator.api.types import RULES, Rule, boolean, integer, list_of, map_of, string

COLD = Rule("self.size > 0", "too small", lambda oven: oven["size"] > 0)


@dataclass(frozen=True)
class Tray:
    """What the bread lies on.

    Not for users.
    """

    depth: Annotated[int, integer("How deep.", 1, 9)] = 3


@dataclass(frozen=True)
class Oven:
    """Where bread
    is baked."""

    name: str
    size: Annotated[int, integer("How large.", 1, 9), Missing("is missing; measure it")]
    max_heat: Annotated[int, integer("The heat."), Mutable] = 250
    is_on: Annotated[bool, boolean("Whether it is on.")] = False
    maker: Annotated[str | None, string("Who made it."), Default("nobody knows")] = None
    shelf: Annotated[str | None, string("The shelf.")] = None
    loaves: Annotated[tuple[str, ...], list_of("Loaves.", string("A loaf."), 4)] = ()
    labels: Annotated[Mapping[str, Any], map_of("Labels.", string("A label."), 4)] = field(default_factory=dict)
    tray: Tray = Tray()

    @staticmethod
    def rules() -> list[Rule]:
        return [COLD]


def test_the_schema_has_the_fields_in_camel_case_and_in_order() -> None:
    schema = declare.schema(Oven)
    assert list(schema["properties"]) == ["size", "maxHeat", "isOn", "maker", "shelf", "loaves", "labels", "tray"]
    assert (schema["description"], schema["required"], schema[RULES]) == ("Where bread is baked.", ["size"], [COLD])
    assert schema["_missing"] == {"size": "is missing; measure it"}
    assert schema["properties"]["tray"]["description"] == "What the bread lies on."


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("size", "How large."),
        ("maxHeat", "The heat. May be changed. Default: 250."),
        ("isOn", "Whether it is on. Default: false."),
        ("maker", "Who made it. Default: nobody knows."),
        ("shelf", "The shelf."),
        ("loaves", "Loaves."),
        ("labels", "Labels."),
    ],
)
def test_the_prose_says_the_default_that_python_has(key: str, said: str) -> None:
    assert declare.schema(Oven)["properties"][key]["description"] == said


def test_a_manifest_is_read_into_the_dataclass() -> None:
    stated = {"size": 2, "maxHeat": 100, "isOn": True, "loaves": ["rye"], "tray": {"depth": 4}}
    read = Oven("big", **declare.read(Oven, stated))
    assert read == Oven("big", 2, 100, True, loaves=("rye",), tray=Tray(4))
    assert declare.parse(Tray, {}) == Tray(3)
