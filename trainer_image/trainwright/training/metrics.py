"""Speed metrics, and tables and files of metrics."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

from trainwright.contract import strict_json


def speed_metrics(
    split: str,
    start_time: float,
    num_samples: float | None = None,
    num_steps: float | None = None,
    num_tokens: float | None = None,
) -> dict[str, float]:
    """Return the seconds since ``start_time`` (of ``time.time``) as ``<split>_runtime``, and rates per second."""
    runtime = time.time() - start_time
    result = {f"{split}_runtime": round(runtime, 4)}
    done = {"samples": num_samples, "steps": num_steps, "tokens": num_tokens}
    if runtime > 0:
        result |= {f"{split}_{what}_per_second": round(n / runtime, 3) for what, n in done.items() if n is not None}
    return result


def metrics_format(metrics: dict[str, float]) -> dict[str, Any]:
    """Format metrics for readers: memory in MB, runtimes as h:mm:ss.cc, operations in GF, four decimals."""
    return {name: _formatted(name, value) for name, value in metrics.items()}


def _formatted(name: str, value: Any) -> Any:
    if "_mem_" in name:
        return f"{int(value) >> 20}MB"
    if "_runtime" in name:
        return f"{datetime.timedelta(seconds=int(value))}.{int(abs(value - int(value)) * 100):02d}"
    if name == "total_flos":
        return f"{int(value) >> 30}GF"
    return round(value, 4) if isinstance(value, float) else value


def log_metrics(self: Any, split: str, metrics: dict[str, float]) -> None:
    """Print ``metrics`` as a table, on world rank 0."""
    if not self.is_world_process_zero():
        return
    shown = {name: str(value) for name, value in metrics_format(metrics).items()}
    names, values = (max(map(len, column), default=0) for column in (shown.keys(), shown.values()))
    print(f"***** {split} metrics *****")
    for name in sorted(shown):
        print(f"  {name: <{names}} = {shown[name]:>{values}}")


def save_metrics(self: Any, split: str, metrics: dict[str, float], combined: bool = True) -> None:
    """Write ``<split>_results.json``, and update ``all_results.json`` if ``combined``; on world rank 0."""
    if not self.is_world_process_zero():
        return
    folder = Path(self.args.output_dir)
    _write(folder / f"{split}_results.json", metrics)
    if combined:
        together = folder / "all_results.json"
        known = json.loads(together.read_text(encoding="utf-8")) if together.exists() else {}
        _write(together, known | metrics)


def _write(path: Path, metrics: dict[str, Any]) -> None:
    path.write_text(json.dumps(strict_json(metrics), indent=4, sort_keys=True), encoding="utf-8")


def save_state(self: Any) -> None:
    """Write ``trainer_state.json`` into the output folder, on world rank 0."""
    if self.is_world_process_zero():
        self.state.save_to_json(Path(self.args.output_dir) / "trainer_state.json")
