"""What a tracker holds of a run is what transformers' own callback logs: both are read back and compared.

One run has the tracker by ``report_to``, another the callback of transformers on our Trainer, which also shows that
callbacks of third parties work unchanged. A tracker whose package is not installed is skipped; ``make trackers`` has
most of them.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

SCRIPT = """
import sys, json, os, warnings
warnings.simplefilter("ignore")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
name, folder, how = sys.argv[1], sys.argv[2], os.environ["HOW"]  # arguments are logged, too
import torch, transformers
from trainer import tiny
from trainwright import Trainer, TrainingArguments
from transformers.integrations import integration_utils
os.chdir(folder)
callbacks, report_to = [], [name]
if how == "theirs":
    report_to, callbacks = [], integration_utils.get_reporting_integration_callbacks([name])
args = TrainingArguments(
    os.path.join(folder, "out"), use_cpu=True, max_steps=4, logging_steps=1, save_steps=2, eval_strategy="steps",
    eval_steps=2, disable_tqdm=True, report_to=report_to, run_name="a run", project="mine",
    per_device_train_batch_size=4,
)
torch.manual_seed(0)
sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 32, "n_positions": 16}
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
data = [{"input_ids": torch.arange(8) + i % 3, "labels": torch.arange(8) + i % 3} for i in range(16)]
trainer = Trainer(model, args, train_dataset=data, eval_dataset=data[:4], callbacks=callbacks)
trainer.train()
"""

ROOT = Path(__file__).parents[2]


def run(name: str, how: str, folder: Path, environment: dict[str, str]) -> None:
    folder.mkdir()
    path = os.pathsep.join([str(ROOT / "trainer_image"), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HOW": how, **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(folder)], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "training goes on" not in done.stderr
    assert "refuses" not in done.stderr


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on loopback, from an environment of its own: its packages are older than ours."""
    program = os.environ.get("TRAINWRIGHT_MLFLOW", "")
    if not program:
        pytest.skip("TRAINWRIGHT_MLFLOW names no mlflow with a server; make trackers")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/store.db", "--default-artifact-root", str(folder / "files")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            for _ in range(600):
                with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=1):
                    break
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)


# -- reading back: metric -> [(step, value)], and the parameters


def read_tensorboard(folder: Path) -> tuple[Any, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (logs,) = (folder / "out" / "runs").iterdir()
    events = EventAccumulator(str(logs)).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return scalars, sorted(events.Tags()["tensors"])


def read_mlflow(folder: Path) -> tuple[Any, Any]:
    import mlflow

    client = mlflow.MlflowClient(os.environ["TRAINWRIGHT_MLFLOW_URI"])
    experiment = client.get_experiment_by_name(folder.name)
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "a run")
    metrics = {
        name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    return metrics, {**found.data.params, "tags": sorted(found.data.tags)}


def read_wandb(folder: Path) -> tuple[Any, Any]:
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows, config, summary = [], {}, {}
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            rows.append({k: v for k, v in items.items() if not k.startswith("_")})
        for update in record.config.update:
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        for update in record.summary.update:
            summary[update.key or "/".join(update.nested_key)] = update.value_json
    metrics: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            metrics.setdefault(name, []).append((row.get("train/global_step"), value))
    return metrics, {**{k: v for k, v in config.items() if k != "_wandb"}, "summary": sorted(summary)}


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, after a header of 7 bytes."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def read_trackio(folder: Path) -> tuple[Any, Any]:
    (path,) = folder.glob("trackio/*.db")
    rows = [json.loads(text) for (text,) in sqlite3.connect(path).execute("select metrics from metrics order by id")]
    metrics: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            metrics.setdefault(name, []).append((row.get("train/global_step"), value))
    ((config,),) = sqlite3.connect(path).execute("select config from configs")
    return metrics, {k: v for k, v in json.loads(config).items() if not k.startswith("_")}


def read_comet(folder: Path) -> tuple[Any, Any]:
    (path,) = folder.glob("*.zip")
    lines = zipfile.ZipFile(path).read("messages.json").decode().splitlines()
    messages = [json.loads(line) for line in lines]
    metrics: dict[str, Any] = {}
    parameters = {}
    for message in (m["payload"] for m in messages):
        if (metric := message.get("metric")) and metric["metricName"].startswith(("train/", "eval/")):
            metrics.setdefault(metric["metricName"], []).append((metric["step"], float(metric["metricValue"])))
        if parameter := message.get("param"):
            parameters[parameter["paramName"]] = parameter["paramValue"]
    return metrics, parameters


def read_clearml(folder: Path) -> tuple[Any, Any]:
    (path,) = folder.glob("cache/**/offline/*.zip")
    archive = zipfile.ZipFile(path)
    metrics: dict[str, Any] = {}
    for line in archive.read("metrics.jsonl").decode().splitlines():
        for event in json.loads(line):
            if event["metric"] != ":monitor:machine" and not event["metric"].startswith(":"):
                name = f"{event['metric']}/{event.get('variant')}"
                metrics.setdefault(name, []).append((event["iter"], event.get("value")))
    task = json.loads(archive.read("task.json"))
    hyper = {k: v["value"] for k, v in task["hyperparams"]["Transformers"].items()}
    return metrics, hyper


def read_dvclive(folder: Path) -> tuple[Any, Any]:
    metrics = {}
    for path in (folder / "dvclive" / "plots" / "metrics").rglob("*.tsv"):
        rows = list(csv.DictReader(path.open(), delimiter="\t"))
        name = path.relative_to(folder / "dvclive" / "plots" / "metrics").with_suffix("").as_posix()
        metrics[name] = [(int(row["step"]), float(row[path.stem])) for row in rows]
    return metrics, yaml.safe_load((folder / "dvclive" / "params.yaml").read_text())


TABLE: dict[str, Any] = {
    "tensorboard": (read_tensorboard, {}),
    "mlflow": (read_mlflow, {"GIT_PYTHON_REFRESH": "quiet"}),
    "wandb": (read_wandb, {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}),
    "trackio": (read_trackio, {"TRACKIO_DIR": "trackio"}),
    "comet_ml": (read_comet, {"COMET_START_ONLINE": "0", "COMET_API_KEY": "x", "COMET_OFFLINE_DIRECTORY": "."}),
    "clearml": (read_clearml, {"CLEARML_OFFLINE_MODE": "1", "CLEARML_CACHE_DIR": "cache", "CLEARML_LOG_MODEL": "0"}),
    "dvclive": (read_dvclive, {"DVC_NO_ANALYTICS": "1"}),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_tracker_holds_what_transformers_callback_logs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed; make trackers")
    read, environment = TABLE[name]
    if name == "mlflow":
        monkeypatch.setenv("TRAINWRIGHT_MLFLOW_URI", request.getfixturevalue("mlflow_server"))
        environment = {**environment, "MLFLOW_TRACKING_URI": os.environ["TRAINWRIGHT_MLFLOW_URI"]}
    found = []
    for how in ("ours", "theirs"):
        folder = tmp_path / how
        run(name, how, folder, {**environment, "HOME": str(folder), "MLFLOW_EXPERIMENT_NAME": how})
        found.append(read(folder))
    (ours, our_parameters), (theirs, their_parameters) = found
    assert ours.keys() == theirs.keys()
    assert len(ours) > 5
    for metric, points in theirs.items():
        assert [step for step, _ in ours[metric]] == [step for step, _ in points], metric
        assert [type(value) for _, value in ours[metric]] == [type(value) for _, value in points], metric
        if "runtime" not in metric and "per_second" not in metric:
            assert sorted(ours[metric]) == sorted(points), metric
    assert without_place(our_parameters) == without_place(their_parameters)


def without_place(parameters: Any) -> str:
    """Parameters without what names the folder or the tracker itself."""
    if isinstance(parameters, dict):
        parameters = {name: value for name, value in parameters.items() if "report_to" not in name}
    text = json.dumps(parameters, sort_keys=True, default=str)
    return text.replace("/ours", "/PLACE").replace("/theirs", "/PLACE")
