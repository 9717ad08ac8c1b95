"""CodeCarbon: the energy of each machine, so the first process of every node measures."""

from __future__ import annotations

from typing import Any

from trainwright.integrations.trackers.tracker import Facts, Row, Tracker


class CodeCarbonCallback(Tracker):
    name = "codecarbon"
    _meter: Any = None

    def look_up(self) -> None:
        import codecarbon

        self._codecarbon = codecarbon

    def _sends(self, state: Any) -> bool:
        return bool(state.is_local_process_zero) and not self._failed

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """It measures and takes no log."""

    def on_predict(self, args, state, control, metrics, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """It measures and takes no log."""

    def begin(self, facts: Facts) -> str | None:
        self._meter = self._codecarbon.EmissionsTracker(output_dir=facts.output_dir)
        self._meter.start()
        return None

    def send(self, facts: Facts, rows: list[Row]) -> None:
        pass

    def end(self, facts: Facts, finished: bool) -> None:
        self._meter.stop()
