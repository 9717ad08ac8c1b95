"""Writes docs/api.md: the names of ``import trainwright``, their signatures and docstrings. ``make manual`` runs it.

It reads the source and imports nothing of it, so that it needs neither torch nor transformers, and a test may run it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "trainer_image"
LINE = 88
FIRST = ("Trainer", "TrainerCallback", "TrainingArguments", "Seq2SeqTrainer", "Seq2SeqTrainingArguments")
HEAD = """# API reference

What `import trainwright` gives, from its docstrings. The names are those of the Hugging Face Trainer, so that a script
changes its import and nothing else; [porting](porting.md) tells of the rest. The fields of `TrainingArguments` are in
[training arguments](training-arguments.md). This page is made by `make manual`.
"""

Definition = ast.ClassDef | ast.FunctionDef


@cache
def module(name: str) -> ast.Module:
    path = SOURCE.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def homes() -> dict[str, list[str]]:
    """Where each public name lives, as the package itself looks it up."""
    for node in module("trainwright").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOMES":
            return {home: list(names) for home, names in ast.literal_eval(node.value).items()}
    raise LookupError("trainwright has no _HOMES")


def find(name: str, home: str) -> tuple[Definition | None, str]:
    """The definition of a name and the module it stands in, which its home may only import it from."""
    for node in module(home).body:
        if isinstance(node, Definition) and node.name == name:
            return node, home
        if isinstance(node, ast.ImportFrom) and (origin := source(node, home)).startswith("trainwright"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(alias.name, origin)
    return None, home


def source(node: ast.ImportFrom, home: str) -> str:
    """The module that an import in ``home`` takes names from."""
    if not node.level:
        return node.module or ""
    package = home.split(".") if SOURCE.joinpath(*home.split(".")).is_dir() else home.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], node.module or ""]).rstrip(".")


# What is written


def lines() -> Iterator[str]:
    yield HEAD
    given = homes()
    theirs = sorted(given.pop("transformers"))
    found = sorted((name, *find(name, home)) for home, names in given.items() for name in names)
    classes = [one for one in found if isinstance(one[1], ast.ClassDef)]
    functions = [one for one in found if isinstance(one[1], ast.FunctionDef)]
    yield "## Classes\n"
    for name, node, home in sorted(classes, key=rank):
        yield from of_class(name, node, home)
    yield "## Functions\n"
    for name, node, _ in functions:
        yield from of_function(f"`{name}`", node, 3)
    yield "## Of transformers\n"
    yield f"Handed on as they are, where transformers is installed: {', '.join(f'`{name}`' for name in theirs)}."


def rank(one: tuple[str, ...]) -> tuple[int, str]:
    return FIRST.index(one[0]) if one[0] in FIRST else len(FIRST), one[0]


def of_class(name: str, node: ast.ClassDef, home: str) -> Iterator[str]:
    first = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    yield f"### `{name}`\n"
    if first is not None:
        yield code(name, first)
    yield from docstring(node)
    if fields := attributes(node):
        yield "Attributes:\n"
        yield from (f"- `{field}`: {text}" for field, text in fields)
        yield ""
    for owner in (node, *mixins(node, home)):
        for method in owner.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and ast.get_docstring(method):
                yield from of_function(f"`{name}.{method.name}`", method, 4)


def mixins(node: ast.ClassDef, home: str) -> list[ast.ClassDef]:
    """The parts of our own that a class is put together from; what is public has a section of its own."""
    public = {name for names in homes().values() for name in names}
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id not in public]
    return [one for base in bases if isinstance(one := find(base, home)[0], ast.ClassDef)]


def of_function(title: str, node: ast.FunctionDef, level: int) -> Iterator[str]:
    yield f"{'#' * level} {title}\n"
    if not any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
        yield code(node.name, node)
    yield from docstring(node)


def attributes(node: ast.ClassDef) -> list[tuple[str, str]]:
    """Public fields with a docstring of their own below them."""
    found = []
    for field, below in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
        if isinstance(text, str) and not field.target.id.startswith("_"):
            found.append((field.target.id, prose(" ".join(text.split()))))
    return found


def code(name: str, node: ast.FunctionDef) -> str:
    """The call, on one line where it fits."""
    copy = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(copy, ast.FunctionDef)
    for group in (copy.args.posonlyargs, copy.args.args):
        if group and group[0].arg in ("self", "cls"):
            del group[0]
            break
    arguments = ", ".join(parts(copy.args))
    gives = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    text = f"{name}({arguments}){gives}"
    if len(text) > LINE:
        text = f"{name}(\n" + "".join(f"    {part},\n" for part in parts(copy.args)) + f"){gives}"
    return f"```python\n{text}\n```\n"


def parts(arguments: ast.arguments) -> list[str]:
    """Each argument as it is written; a comma within brackets or quotes parts nothing."""
    pieces, depth, start, text = [], 0, 0, ast.unparse(arguments)
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            pieces.append(text[start:place].strip())
            start = place + 1
    return [re.sub(r"^(\w+: .+?)=", r"\1 = ", piece) for piece in [*pieces, text[start:].strip()]]


def docstring(node: Definition) -> Iterator[str]:
    """The docstring, its sections as lists."""
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    for block in text.split("\n\n"):
        section = re.match(r"(Args|Raises|Returns|Yields|Attributes):\n", block)
        if section is None:
            yield prose(" ".join(block.split()) if not block.startswith(" ") else block) + "\n"
            continue
        body = inspect.cleandoc("\n" + block[section.end() :])
        entries = re.split(r"\n(?! )", body)
        yield f"{section[1]}:\n"
        for entry in entries:
            name, colon, about = " ".join(entry.split()).partition(": ")
            yield f"- `{name}`: {prose(about)}" if colon else f"- {prose(name)}"
        yield ""


def prose(text: str) -> str:
    """The roles and double backquotes of a docstring as Markdown has them."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def page() -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines())).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(page(), encoding="utf-8")
