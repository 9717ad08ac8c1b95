"""Real training arguments for tests of single rooms: nothing written, no device but the CPU."""

from __future__ import annotations

from typing import Any

from trainwright.arguments import TrainingArguments


def settings(**changes: Any) -> TrainingArguments:
    return TrainingArguments(**{"output_dir": "never-written", "report_to": "none", "use_cpu": True, **changes})
