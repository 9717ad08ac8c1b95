"""Reads manifests as kubectl does, and remembers the line of every field for error messages.

kubectl and PyYAML disagree: kubectl reads ``3e-4``, ``5e-05`` and ``1e5`` as numbers where PyYAML reads text, ``y`` and
``n`` as booleans, ``10:30`` as text where PyYAML reads a number in base 60, and dates as text. It then converts to
JSON, where ``2.0`` is ``2``. Duplicate keys are refused, because clients disagree on which of them counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

import yaml

MAX_VALUES = 200_000
"""Aliases can expand without limit; no manifest that an API server accepts has this many values."""

_PLAIN = "tag:trainwright.dev,2026:plain"
_STANDARD = "tag:yaml.org,2002:"

_BOOLEANS = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
}
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_NOT_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(
    r"[-+]?(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}


_JSON = re.compile(r"\s*[{\[]")
_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
"""A character beyond 16 bits, which JSON escapes as a surrogate pair."""


class ManifestError(ValueError):
    """The text is not a manifest; the message is one line that begins with file and line."""


@dataclass(frozen=True)
class Document:
    """One YAML document: its content as JSON values, and the line of each field by its path."""

    source: str
    content: Any
    lines: Mapping[str, int] = field(default_factory=dict)
    duplicates: tuple[tuple[str, int], ...] = ()
    """Path and line of each key that appears twice in one mapping."""

    def line_of(self, path: str) -> int | None:
        """The line of a field, or of the nearest enclosing field that exists."""
        while path not in self.lines:
            cut = max(path.rfind("."), path.rfind("["))
            if cut < 0:
                return self.lines.get("")
            path = path[:cut]
        return self.lines[path]

    def place(self, path: str) -> str:
        """``job.yaml:12``."""
        line = self.line_of(path)
        return self.source if line is None else f"{self.source}:{line}"


def join(path: str, key: str | int) -> str:
    """The path of a child: ``spec.podTemplate.env[0].name``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def plain(text: str) -> Any:
    """The value of an unquoted scalar, as kubectl reads it; :class:`ValueError` for NaN and infinities (not JSON)."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _NOT_JSON.fullmatch(text):
        raise ValueError(f"{text} is not a number in JSON; leave it out or give a finite number")
    if text[0] not in "+-.0123456789":
        return text
    bare = text if text[0] == "." else text.replace("_", "")
    if match := _INT.fullmatch(bare):
        return _whole(bare, match)
    return _finite(float(bare)) if _FLOAT.fullmatch(bare) else text


def _whole(text: str, match: re.Match[str]) -> int | float:
    kind = match.lastgroup or "dec"
    value = int(match[kind], _BASES[kind]) * (-1 if text[0] == "-" else 1)
    return value if -(2**63) <= value < 2**63 else float(value)


def _finite(number: float) -> int | float:
    """The number as JSON writes it: a float without a fraction is an integer, unless JSON writes an exponent."""
    if math.isinf(number):
        raise ValueError("is larger than any number in JSON")
    return int(number) if number.is_integer() and abs(number) < 1e21 else number


def read(text: str | TextIO, source: str) -> Iterator[Document]:
    """The documents of a YAML or JSON text; empty ones are left out. :class:`ManifestError` names the place."""
    loader = _Loader(_join_surrogates(text) if isinstance(text, str) and _JSON.match(text) else text)
    try:
        while loader.check_node():
            document = _Reader(source).document(loader.get_node())
            if document.content is not None:
                yield from _items(document)
    except yaml.MarkedYAMLError as error:
        raise ManifestError(_syntax(error, source)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{source}: is not YAML text: {str(error).splitlines()[0]}") from None
    finally:
        loader.dispose()


def _join_surrogates(text: str) -> str:
    """JSON text with each surrogate pair as one escape, because YAML has no surrogates."""

    def whole(found: re.Match[str]) -> str:
        high, low = int(found[2], 16) - 0xD800, int(found[3], 16) - 0xDC00
        return f"{found[1]}\\U{0x10000 + (high << 10) + low:08x}"

    return _PAIR.sub(whole, text)


def _items(document: Document) -> Iterator[Document]:
    """The items of a ``kind: List``, or the document itself."""
    content = document.content
    if not (isinstance(content, dict) and content.get("kind") == "List" and isinstance(content.get("items"), list)):
        yield document
        return
    for index, item in enumerate(content["items"]):
        prefix = f"items[{index}]"
        lines = {_inside(path, prefix): line for path, line in document.lines.items() if path.startswith(prefix)}
        duplicates = tuple(
            (_inside(path, prefix), line) for path, line in document.duplicates if path.startswith(prefix)
        )
        yield Document(document.source, item, lines, duplicates)


def _inside(path: str, prefix: str) -> str:
    return path[len(prefix) :].removeprefix(".")


def _syntax(error: yaml.MarkedYAMLError, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
    problem = str(error.problem or error)
    if "cannot start any token" in problem:
        problem += "; indent with spaces, not tabs, and quote text that begins with @, % or a backquote"
    return f"{place}: is not YAML: {problem}"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Only parses to nodes; :func:`plain` decides what a scalar means."""

    yaml_implicit_resolvers: dict[str | None, Any] = {}


_Loader.add_implicit_resolver(_PLAIN, re.compile(""), None)


class _Reader:
    """Builds the content of one document from its nodes."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[str, int] = {}
        self.duplicates: list[tuple[str, int]] = []
        self.values = 0
        self.ancestors: set[int] = set()

    def document(self, node: yaml.Node) -> Document:
        content = self.value(node, "")
        return Document(self.source, content, self.lines, tuple(self.duplicates))

    def value(self, node: yaml.Node, path: str) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.error(node, "its aliases expand to too many values")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if id(node) in self.ancestors:
            raise self.error(node, "an alias refers to an object that contains it")
        self.ancestors.add(id(node))
        value = self.mapping(node, path) if isinstance(node, yaml.MappingNode) else self.sequence(node, path)
        self.ancestors.discard(id(node))
        return value

    def scalar(self, node: yaml.ScalarNode) -> Any:
        implied = node.tag in {_PLAIN, *(_STANDARD + kind for kind in ("int", "float", "bool", "null"))}
        try:
            return plain(node.value) if implied else node.value
        except ValueError as error:
            raise self.error(node, str(error)) from None

    def sequence(self, node: yaml.Node, path: str) -> list[Any]:
        return [self.value(item, join(path, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _PLAIN and key_node.value == "<<":
                merged = {**self.merge(value_node, path), **merged}
                continue
            key = self.key(key_node)
            here = join(path, key)
            if key in own:
                self.duplicates.append((here, key_node.start_mark.line + 1))
            self.lines[here] = key_node.start_mark.line + 1
            own[key] = self.value(value_node, here)
        return {**merged, **own}

    def merge(self, node: yaml.Node, path: str) -> dict[str, Any]:
        """The mapping of ``<<: *defaults``, or of a list of them; earlier ones take precedence."""
        parts = reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                raise self.error(part, "<< takes a mapping, or a list of mappings")
            found |= self.value(part, path)
        return found

    def key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, "a key must be text")
        value = self.scalar(node)
        if value is None:
            raise self.error(node, "a key is empty; quote it, or remove the colon")
        return str(value).lower() if isinstance(value, bool) else str(value)

    def error(self, node: yaml.Node, problem: str) -> ManifestError:
        return ManifestError(f"{self.source}:{node.start_mark.line + 1}: {problem}")


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes text that PyYAML or kubectl would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> Any:
    style = None
    if "\n" in text:
        style = "|"
    elif not _reads_as_text(text):
        style = '"'
    return dumper.represent_scalar(_STANDARD + "str", text, style)


def _reads_as_text(text: str) -> bool:
    try:
        return isinstance(plain(text), str)
    except ValueError:
        return False


def _represent_float(dumper: _Dumper, number: float) -> Any:
    text = repr(number)
    mantissa, _, exponent = text.partition("e")
    return dumper.represent_scalar(
        _STANDARD + "float", f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent}" if exponent else text
    )


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)


def write(*documents: Any) -> str:
    """YAML that kubectl and PyYAML read the same way; keeps the order of keys and quotes ``"no"``."""
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True, explicit_start=len(documents) > 1
    )
