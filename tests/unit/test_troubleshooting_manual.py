"""docs/troubleshooting.md beside the code: it tells every reason, and what it quotes is what the programs print."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from trainwright_operator.api import names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SEEN_ELSEWHERE = frozenset({"PodsReady", "Suspended", "Resumed", "TrainingCompleted"})
"""Reasons that tell of no trouble."""


def sources() -> str:
    """All our code as one text, in which a string that goes on in the next line is one."""
    files = [*ROOT.glob("operator/trainwright_operator/**/*.py"), *ROOT.glob("trainer_image/trainwright/**/*.py")]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files))


def quoted() -> list[str]:
    """Whole sentences: what stands alone in a cell as what a program says."""
    cells = [cell.strip() for line in PAGE.splitlines() if line.startswith("| ") for cell in line.split(" | ")[:3]]
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell) if len(text.split()) > 3]


def test_every_reason_is_documented() -> None:
    reasons = {value for name, value in inspect.getmembers(names.Reason) if name.isupper()}
    assert [one for one in sorted(reasons - SEEN_ELSEWHERE) if not re.search(rf"\b{one}\b", PAGE)] == []


def test_what_is_quoted_is_what_is_printed() -> None:
    code, missing = sources(), []
    for text in quoted():
        if text.startswith(("kubectl", "trainwright ")):
            continue
        parts = [part.strip("; ,") for part in re.split(r"\.\.\.", text)]
        missing += [part for part in parts if len(part) > 3 and part not in code]
    assert len(quoted()) > 20
    assert missing == []
