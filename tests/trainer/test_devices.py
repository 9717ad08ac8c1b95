"""Looking for a device, telling of it, and the figures of a run: as far as a machine without one shows it."""

import json
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from trainer import runs, tiny
from trainer.gangs import Gang
from trainwright import TrainingArguments
from trainwright.contract import UserError
from trainwright.devices import check, meter, profile, report
from trainwright.devices.check import VisibleDevices
from trainwright.devices.meter import Meter

HAVE_GPU = torch.cuda.is_available()
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAVE_GPU, reason="no GPU is here")]

H100 = VisibleDevices("2.15.0+cu130", "cuda", "cuda", 8, node=True)
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040)."
CASES = {
    # name: (vendor, what was found, local rank, words of the problem, or None)
    "nvidia": ("nvidia", H100, 7, None),
    "nvidia, one rank too many": ("nvidia", H100, 8, "it is number 9 of 9 in this pod, which has 8 (NVIDIA GPU)"),
    "nvidia, torch for the CPU": ("nvidia", replace(H100, build=None), 0, "use an image of the target nvidia"),
    "nvidia, torch for AMD": ("nvidia", replace(H100, build="hip"), 0, "no NVIDIA GPU can be used: torch 2.15.0+cu130"),
    "nvidia, none in the pod": ("nvidia", replace(H100, kind=None, node=False), 0, "resource (nvidia.com/gpu)"),
    "nvidia, old driver": (
        "nvidia", replace(H100, kind=None, error=OLD_DRIVER), 0, f"driver cannot be used ({OLD_DRIVER})",
    ),
    "amd": ("amd", replace(H100, build="hip"), 0, None),
    "amd, torch for NVIDIA": ("amd", H100, 0, "use an image of the target amd"),
    "amd, none in the pod": ("amd", VisibleDevices("2.15.0", "hip", None, 0, node=False), 0, "(amd.com/gpu)"),
    "tpu": ("tpu", VisibleDevices("2.15.0", None, "tpu", 4, node=True), 3, None),
    "tpu by torch_xla": ("tpu", VisibleDevices("2.9.1", None, "xla", 4, node=True), 0, None),
    "tpu, none in the pod": ("tpu", VisibleDevices("2.15.0", None, None, 0, node=False), 0, "it must request google"),
    "tpu, unknown to torch": ("tpu", VisibleDevices("2.15.0", None, None, 0, node=True), 0, "of the target tpu or"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_rank_without_its_device_says_what_is_missing_and_the_fix(name, monkeypatch):
    vendor, found, local_rank, words = CASES[name]
    monkeypatch.setattr(check, "detect", {vendor: found}.__getitem__)
    place = {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(local_rank + 1), "RANK": "9"}
    if words is None:
        check.require(vendor, place)
        return
    with pytest.raises(UserError) as refusal:
        check.require(environment={"TRAINWRIGHT_VENDOR": vendor, **place})
    assert str(refusal.value).startswith("accelerator: rank 9: ")
    assert words in str(refusal.value)


def test_where_no_vendor_is_named_nothing_is_looked_for(monkeypatch):
    looked = []
    monkeypatch.setattr(check, "detect", looked.append)
    check.require(environment={})
    check.require("cpu", environment={})
    assert looked == []


@pytest.mark.skipif(find_spec("torch_xla") is not None, reason="PyTorch/XLA is here")
def test_an_image_without_pytorch_xla_is_refused_by_name():
    with pytest.raises(UserError, match=r"torch_xla is not in this image \(No module named 'torch_xla'\)"):
        check.require("tpu", {"TRAINWRIGHT_RUNTIME": "torch_xla"})


DECLARED = {
    "task": "CausalLM",
    "model": {"source": "gpt2", "fromConfig": {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 8}},
    "training_arguments": {"max_steps": 1, "save_strategy": "no"},
}


@pytest.mark.skipif(HAVE_GPU, reason="a GPU is here")
def test_a_pod_of_a_gpu_pool_without_a_gpu_ends_for_good(tmp_path):
    (tmp_path / "corpus.txt").write_text("a few words to train on\n" * 20)
    job = {**DECLARED, "dataset": {"source": str(tmp_path / "corpus.txt"), "format": "text"}}
    with Gang(tmp_path, **job) as gang:
        gang.environment = {"TRAINWRIGHT_VENDOR": "nvidia"}
        assert gang.run() == [64], gang.log()
        word = gang.word()
    assert word.reason == "BadConfiguration"
    assert word.error.startswith("accelerator: rank 0: ")
    assert "NVIDIA GPU" in word.error
    assert "Traceback" not in gang.log()


def test_who_asks_for_the_cpu_gets_it_on_any_pool(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINWRIGHT_VENDOR", "nvidia")
    assert TrainingArguments(str(tmp_path), use_cpu=True).device == torch.device("cpu")


NUMBERS = {
    # name: (bf16, fp16, device, capability, words or None)
    "bf16 on Ampere": (True, False, "cuda", (8, 0), None),
    "bf16 on Volta": (True, False, "cuda", (7, 0), "bf16: Tesla does not support bfloat16; set fp16"),
    "fp16 on Volta": (False, True, "cuda", (7, 0), None),
    "bf16 on AMD": (True, False, "cuda", None, None),
    "bf16 on a CPU": (True, False, "cpu", None, None),
    "bf16 on a TPU": (True, False, "xla", None, None),
    "fp16 on a TPU": (False, True, "xla", None, "fp16: a TPU computes in bfloat16"),
    "fp16 on a native TPU": (False, True, "tpu", None, "fp16: a TPU computes in bfloat16"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_a_device_does_not_know_are_refused(name):
    bf16, fp16, device, capability, words = NUMBERS[name]
    args = SimpleNamespace(bf16=bf16, fp16=fp16)
    found = check.unsupported_format(args, device, capability, "Tesla")
    assert found is None if words is None else words in found


def test_what_only_torch_xla_counts_is_refused_elsewhere():
    from trainwright.integrations.device_metrics import callbacks_for

    args = SimpleNamespace(
        device=torch.device("cpu"), debug=["tpu_metrics_debug"], output_dir="x", process_index=0, bf16=False, fp16=False
    )
    with pytest.raises(UserError, match="debug: tpu_metrics_debug needs torch_xla, which this run does not use"):
        callbacks_for(args)
    assert callbacks_for(SimpleNamespace(**{**vars(args), "debug": []})) == []


# -- the line that tells of a device

DRIVERS = {
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC": "550.54.15",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder)": "570.86.15",
    "something else": None,
}


@pytest.mark.parametrize("text", DRIVERS)
def test_the_driver_is_what_the_kernel_says(text, tmp_path, monkeypatch):
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(report, "NVIDIA_DRIVER", tmp_path / "version")
    assert report.nvidia_driver() == DRIVERS[text]


def test_a_machine_without_a_driver_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "NVIDIA_DRIVER", tmp_path / "none")
    monkeypatch.setattr(report, "AMD_DRIVER", tmp_path / "none")
    assert (report.nvidia_driver(), report.amd_driver()) == (None, None)


def test_a_gpu_is_told_of_in_one_line_of_json(monkeypatch, capsys):
    seen = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", total_memory=85017034752, multi_processor_count=132, major=9, minor=0
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: seen)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 30, 7))
    monkeypatch.setattr(torch.version, "hip", None)
    report.log_device(torch.device("cuda", 3), rank=11, local_rank=3)
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["event"], told["rank"], told["localRank"], told["index"]) == ("device", 11, 3, 3)
    assert (told["device"], told["memoryBytes"]) == ("NVIDIA H100 80GB HBM3", 85017034752)
    assert (told["nccl"], told["capability"]) == ("2.30.7", "9.0")


def test_a_cpu_has_no_device_event(capsys):
    report.log_device(torch.device("cpu"), 0, 0)
    assert capsys.readouterr().out == ""


# -- figures


def test_a_run_uses_the_share_of_its_devices_that_its_operations_took(monkeypatch):
    monkeypatch.setattr(meter, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(meter, "peak_memory", lambda device: 3 << 29)
    times = iter([0.0, 10.0, 30.0, 30.0])
    figures = Meter(torch.device("cuda", 0), devices=2, clock=lambda: next(times))
    assert figures.read(0.0) == {"peak_memory_gib": 1.5}
    assert figures.read(989.5e12 * 2 * 10 * 0.5)["mfu"] == pytest.approx(0.5, abs=1e-4)


def test_a_cpu_has_no_figures():
    assert Meter(torch.device("cpu"), devices=1).read(1e12) == {}


# -- recordings


@pytest.mark.parametrize(("text", "steps"), [("3", (3, 3)), ("10-12", (10, 12)), (" 1-2 ", (1, 2))])
def test_steps_to_record_are_a_range(text, steps):
    assert profile.parse_steps(text) == steps


@pytest.mark.parametrize("text", ["0", "3-1", "a", "1-", "-2", "1,2"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(UserError, match="PROFILE_STEPS"):
        profile.parse_steps(text)


def test_the_steps_that_are_asked_for_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("PROFILE_STEPS", "2-3")
    runs.trained(tmp_path, max_steps=4, save_strategy="no")
    (trace,) = (tmp_path / "profile" / "rank-0").glob("*.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert sum(name.startswith("Optimizer.step") for name in names if name) == 1


# -- a gang on a device that accelerate does not know

JOINED = """
import os
from datetime import timedelta
import torch
from trainwright.devices import tpu
state = tpu.join(timedelta(seconds=60), "cpu", "gloo")
assert (state.num_processes, state.process_index) == (2, int(os.environ["RANK"]))
assert state.device == torch.device("cpu")
state.wait_for_everyone()
total = torch.tensor(float(state.process_index + 1))
torch.distributed.all_reduce(total)
print("SUM", total.item(), state.is_main_process)
"""


def test_ranks_are_joined_where_accelerate_would_let_each_train_alone(tmp_path):
    with Gang(tmp_path, JOINED, per_node=2) as gang:
        assert gang.run() == [0], gang.log()
    assert "[rank 0] SUM 3.0 True" in gang.log()
    assert "[rank 1] SUM 3.0 False" in gang.log()


# -- with a device


@pytest.mark.parametrize("numbers", [{}, {"bf16": True}, {"fp16": True}, {"tf32": True}], ids=str)
class TestOnAGpu:
    pytestmark = needs_gpu

    def test_training_logs_the_memory_and_the_speed_of_the_gpu(self, numbers, tmp_path, capsys):
        trainer = runs.trained(tmp_path, model=tiny.gpt2(), data=tiny.texts(), max_steps=6, logging_steps=2, **numbers)
        assert '"event": "device"' in capsys.readouterr().out
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert all(entry["peak_memory_gib"] > 0 for entry in logs)
        assert trainer.optimizer.defaults["fused"]
