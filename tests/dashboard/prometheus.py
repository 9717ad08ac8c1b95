"""A Prometheus on loopback: it scrapes as the Prometheus operator would set it up for the chart's ServiceMonitor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.paths import CHECKOUT
from cluster.say import ClusterError
from integration.operators import free_port

FOLDER = CHECKOUT / ".prometheus" / "usr" / "bin"
SCRAPE_SECONDS = 1
Series = tuple[dict[str, str], list[tuple[float, float]]]
"""Labels, and points of time and value."""


def program(name: str) -> str:
    found = shutil.which(name, path=f"{FOLDER}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise ClusterError(f"there is no {name}: make dashboard installs it from Debian's package prometheus")
    return found


class Prometheus:
    """A server for these replicas, which are pods of ``service`` by name, with their ports."""

    def __init__(self, folder: Path, replicas: Mapping[str, int], endpoint: Mapping[str, Any], service: Any) -> None:
        self._folder, self._port, self._replicas = folder, free_port(), len(replicas)
        targets = [
            {
                "targets": [f"127.0.0.1:{port}"],
                "labels": {
                    "namespace": service["metadata"]["namespace"],
                    "service": service["metadata"]["name"],
                    "job": service["metadata"]["name"],
                    "endpoint": endpoint["port"],
                    "container": "operator",
                    "pod": pod,
                },
            }
            for pod, port in replicas.items()
        ]
        scrape = {
            "job_name": "trainwright",
            "honor_labels": endpoint.get("honorLabels", False),
            "metrics_path": endpoint["path"],
            "static_configs": targets,
        }
        interval = f"{SCRAPE_SECONDS}s"
        self._configuration = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "scrape_configs": [scrape],
        }

    def __enter__(self) -> Prometheus:
        path = self._folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(self._configuration))
        command = [
            program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn",
        ]  # fmt: skip
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._scrapes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"Prometheus did not start: {(self._folder / 'prometheus.log').read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def query(self, expression: str, at: float) -> dict[tuple[tuple[str, str], ...], float]:
        """The value of each series, by its labels."""
        found = self._get("query", query=expression, time=f"{at:.3f}")
        return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in found["result"]}

    def curve(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        found = self._get("query_range", query=expression, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:g}")
        return [
            (one["metric"], [(float(at), float(value)) for at, value in one["values"] if value != "NaN"])
            for one in found["result"]
        ]

    def _scrapes(self) -> bool:
        try:
            return sum(self.query("up", time.time()).values()) == self._replicas
        except OSError:
            return False

    def _get(self, what: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ClusterError(f"{query['query']}: {json.load(error)['error']}") from None
