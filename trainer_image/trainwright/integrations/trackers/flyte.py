"""Flyte: checkpoints of a task, and its log as a deck. Works inside of a Flyte task."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from trainwright.integrations.trackers.tracker import Facts, Row, Tracker


class FlyteCallback(Tracker):
    name = "flyte"
    _rows: list[dict[str, Any]]

    def look_up(self) -> None:
        from flytekit import current_context

        self._checkpoint, self._rows = current_context().checkpoint, []

    def begin(self, facts: Facts) -> str | None:
        return None

    def send(self, facts: Facts, rows: list[Row]) -> None:
        self._rows += [{**row.values, "step": row.step} for row in rows if not row.predicted]

    def keeps_checkpoints(self) -> bool:
        return True

    def keep(self, facts: Facts, folder: str, name: str, row: Row) -> None:
        self._checkpoint.save(folder)

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        super().on_train_end(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        if self._sends(state) and find_spec("flytekitplugins") and find_spec("flytekitplugins.deck"):
            import pandas as pd
            from flytekit import Deck
            from flytekitplugins.deck.renderer import TableRenderer

            Deck("Log History", TableRenderer().to_html(pd.DataFrame(state.log_history)))
