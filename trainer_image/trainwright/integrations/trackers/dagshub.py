"""DagsHub: MLflow's server there, and optionally the output folder in the repository."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from trainwright.integrations.trackers.mlflow import MLflowCallback
from trainwright.integrations.trackers.tracker import Facts, flag


class DagsHubCallback(MLflowCallback):
    """Environment: MLFLOW_TRACKING_URI (of the repository), BRANCH, HF_DAGSHUB_LOG_ARTIFACTS, and that of MLflow."""

    name = "dagshub"
    _repo: Any = None

    def look_up(self) -> None:
        super().look_up()
        from dagshub.upload import Repo

        self._class = Repo

    def begin(self, facts: Facts) -> str | None:
        parts = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).path.strip("/").split("/")
        if len(parts) < 2:
            raise ValueError("MLFLOW_TRACKING_URI must be set, to https://dagshub.com/OWNER/REPOSITORY.mlflow")
        name, branch = parts[-1].partition(".")[0], os.environ.get("BRANCH") or "main"
        self._repo = self._class(owner=parts[-2], name=name, branch=branch)
        return super().begin(facts)

    def end(self, facts: Facts, finished: bool) -> None:
        super().end(facts, finished)
        if finished and flag("HF_DAGSHUB_LOG_ARTIFACTS"):
            self._repo.directory("artifacts").add_dir(facts.output_dir)
