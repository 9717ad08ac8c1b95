"""Experiment trackers, one file each, imported only when ``report_to`` names them.

Each callback has the name of the one of transformers for the same tracker, so that scripts can remove or find it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

TRACKERS = {
    "azure_ml": ("azure_ml", "AzureMLCallback"),
    "clearml": ("clearml", "ClearMLCallback"),
    "codecarbon": ("codecarbon", "CodeCarbonCallback"),
    "comet_ml": ("comet_ml", "CometCallback"),
    "dagshub": ("dagshub", "DagsHubCallback"),
    "dvclive": ("dvclive", "DVCLiveCallback"),
    "flyte": ("flyte", "FlyteCallback"),
    "mlflow": ("mlflow", "MLflowCallback"),
    "neptune": ("neptune", "NeptuneCallback"),
    "swanlab": ("swanlab", "SwanLabCallback"),
    "tensorboard": ("tensorboard", "TensorBoardCallback"),
    "trackio": ("trackio", "TrackioCallback"),
    "wandb": ("wandb", "WandbCallback"),
}
"""Name in ``report_to`` -> module here, and class. ``kubeflow`` is the progress reporter, which needs no asking."""


def tracker_callbacks(args: Any) -> list[Any]:
    """A callback for each tracker of ``args.report_to``."""
    named = args.report_to if isinstance(args.report_to, list) else [args.report_to]
    return [_load(name)() for name in dict.fromkeys(named) if name in TRACKERS]


def _load(name: str) -> type[Any]:
    module, kind = TRACKERS[name]
    found: type[Any] = getattr(import_module(f"{__name__}.{module}"), kind)
    return found
