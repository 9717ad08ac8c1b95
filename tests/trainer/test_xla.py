"""The Trainer on PyTorch/XLA, in the environment that ``make xla`` builds: one device, and one program over two."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from trainer.gangs import Gang
from trainwright.checkpoint.weights import read_weights

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-xla" / "bin" / "python"
JOB = Path(__file__).with_name("xla_job.py")
MODEL = {
    "source": "gpt2",
    "fromConfig": {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 16},
    "tokenizer": "bytes",
}

LONG = 280.0

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="PyTorch/XLA is not here: `make xla` installs it")


def environment(devices=1, **more):
    return {**os.environ, "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices), "OMP_NUM_THREADS": "1", **more}


def run(folder, devices=1, code=0, variables=None, **settings):
    """What the job printed at its end, and all that it said."""
    command = [str(PYTHON), str(JOB), str(folder), json.dumps(settings)]
    done = subprocess.run(
        command, env=environment(devices, **(variables or {})), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == code, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    return (json.loads(lines[-1]) if code == 0 else None), done.stdout + done.stderr


def losses(result):
    return [entry["loss"] for entry in result["log"] if "loss" in entry]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_that_was_interrupted_ends_bit_for_bit_as_one_that_was_not(devices, tmp_path):
    settings = {"gradient_accumulation_steps": devices, "bf16": devices == 2}
    whole, said = run(tmp_path / "whole", devices, **settings)
    assert (whole["device"], whole["devices"], whole["tied"]) == ("xla", devices, True)
    assert f'"devices": {devices}, "spmd": {"true" if devices == 2 else "false"}' in said
    first, last = losses(whole)
    assert last < first
    run(tmp_path / "parts", devices, code=77, stop_at=6, **settings)
    assert not (tmp_path / "parts" / "checkpoint-8").exists()
    resumed, _ = run(tmp_path / "parts", devices, **settings)
    assert resumed["digest"] == whole["digest"]
    assert losses(resumed)[-1] == losses(whole)[-1]
    assert resumed["eval"]["eval_loss"] == whole["eval"]["eval_loss"]


def test_two_devices_take_twice_the_samples_and_compute_what_one_would(tmp_path):
    """Up to rounding: the sums are in another order. Without dropout, which draws by device."""
    one, _ = run(tmp_path / "one", 1, per_device_train_batch_size=8, max_steps=5, logging_steps=1, lengths=[8])
    two, _ = run(tmp_path / "two", 2, per_device_train_batch_size=4, max_steps=5, logging_steps=1, lengths=[8])
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=0.05)
    assert [entry["epoch"] for entry in two["log"]] == [entry["epoch"] for entry in one["log"]]


def test_checkpoints_hold_tensors_of_the_host_and_tied_weights_once(tmp_path):
    run(tmp_path, 2, max_steps=4)
    weights = read_weights(tmp_path / "checkpoint-4")
    assert {name: tensor.device.type for name, tensor in weights.items()} == {
        "embed.weight": "cpu",
        "head.weight": "cpu",
    }
    assert weights["embed.weight"].data_ptr() == weights["head.weight"].data_ptr()


def test_steps_that_keep_compiling_are_counted_and_warned_of(tmp_path):
    steady, said = run(tmp_path / "steady", max_steps=40, save_strategy="no", logging_steps=40)
    assert "recompiled" not in said
    assert steady["log"][0]["xla_compilations"] < 10
    varied = {"lengths": list(range(4, 44)), "per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}
    unsteady, said = run(tmp_path / "unsteady", max_steps=40, save_strategy="no", logging_steps=40, **varied)
    assert said.count("steps were recompiled, because their batches differ in shape: pad them") == 1
    assert unsteady["log"][0]["xla_compilations"] >= 30


def test_debug_prints_what_torch_xla_counted(tmp_path):
    _, said = run(tmp_path, max_steps=2, save_strategy="no", num_train_epochs=1, debug=["tpu_metrics_debug"])
    assert "Metric: CompileTime" in said


def test_a_profile_of_some_steps_is_written_beside_the_checkpoints(tmp_path):
    run(tmp_path, max_steps=4, save_strategy="no", variables={"PROFILE_STEPS": "2-3"})
    assert list((tmp_path / "profile" / "rank-0").rglob("*.xplane.pb"))


REFUSED = {
    "use_cpu": ({"use_cpu": True}, {}, "use_cpu: torch_xla is used in every process"),
    "torch_compile": ({"torch_compile": True}, {}, "torch_compile: torch_xla compiles every step as it is"),
    "no device": ({}, {"PJRT_DEVICE": "TPU"}, "accelerator: torch_xla finds no device (PJRT_DEVICE is TPU"),
    "profile": ({}, {"PROFILE_STEPS": "3-1"}, "PROFILE_STEPS: '3-1' is not a range of steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_there_is_refused_in_words(name, tmp_path):
    settings, variables, words = REFUSED[name]
    _, said = run(tmp_path, code=1, variables=variables, **settings)
    assert words in said


def test_without_it_the_same_environment_trains_on_the_cpu(tmp_path):
    result, _ = run(tmp_path, max_steps=4, variables={"USE_TORCH_XLA": "0"})
    assert (result["device"], result["devices"]) == ("cpu", 0)


# -- under the launcher


def pod(folder, devices=2, **job):
    gang = Gang(folder, per_node=4, **job)
    gang.python = str(PYTHON)
    gang.environment = {
        "TRAINWRIGHT_RUNTIME": "torch_xla", "TRAINWRIGHT_VENDOR": "tpu", "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": str(devices), "TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost",
    }  # fmt: skip
    return gang


def declared(folder, **arguments):
    (folder / "corpus.txt").write_text("\n".join(f"line {n} of a small corpus" for n in range(200)))
    return {
        "task": "CausalLM",
        "model": MODEL,
        "dataset": {"source": str(folder / "corpus.txt"), "format": "text", "blockSize": 16},
        "training_arguments": {
            "max_steps": 8,
            "per_device_train_batch_size": 2,
            "save_steps": 4,
            "logging_steps": 2,
            **arguments,
        },
    }


def test_a_declared_job_has_one_process_that_drives_the_devices_of_its_host(tmp_path):
    with pod(tmp_path, **declared(tmp_path)) as gang:
        assert gang.run(LONG) == [0], gang.log()
        word = gang.word()
    assert (word.reason, word.step) == ("Completed", 8)
    assert word.metrics["xla_compilations"] > 0
    assert gang.log().count('"event": "device"') == 1


def test_a_preempted_pod_saves_and_its_successor_goes_on(tmp_path):
    job = declared(tmp_path, max_steps=4000, save_steps=4000, logging_steps=1)
    with pod(tmp_path, **job) as gang:
        gang.start().await_log("'loss'", seconds=LONG)
        gang.signal(0, signal.SIGTERM)
        assert gang.wait(LONG) == [143], gang.log()
        word = gang.word()
    assert word.reason == "Preempted"
    saved = int(next((tmp_path / "output").glob("checkpoint-*")).name.removeprefix("checkpoint-"))
    job["training_arguments"] |= {"max_steps": saved + 2}
    with pod(tmp_path, attempt=2, **job) as gang:
        assert gang.run(LONG) == [0], gang.log()
        assert gang.word().step == saved + 2
    assert gang.log().count("'loss'") == 2  # each step is logged, and none is trained again


def test_a_pod_without_its_device_ends_for_good(tmp_path):
    with pod(tmp_path, **declared(tmp_path)) as gang:
        gang.environment["PJRT_DEVICE"] = "TPU"
        assert gang.run(LONG) == [64], gang.log()
        word = gang.word()
    assert word.reason == "BadConfiguration"
    assert "accelerator: rank 0: there is no TPU in this pod" in word.error
