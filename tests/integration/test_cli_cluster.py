"""watch, logs, report and describe as a person uses them, against a real API server and a real operator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.kube import Kube
from cluster.paths import CHECKOUT
from cluster.simulated import FOREVER
from integration import charts
from integration.jobs import job, state
from integration.kubelet import LABEL, Logs, kubelet, node
from integration.operators import Operator

pytestmark = pytest.mark.usefixtures("crds")
CLI = [sys.executable, "-m", "trainwright_operator.cli"]


@pytest.fixture
def operator(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    running = Operator(kube, namespace, tmp_path).start().wait_leading()
    yield running
    running.stop()


@pytest.fixture
def kubeconfig(kube: Kube, namespace: str, tmp_path: Path) -> Path:
    """One whose context is in the namespace of the test."""
    config = yaml.safe_load(kube.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = namespace
    path = tmp_path / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def cli(kubeconfig: Path):
    """Runs one command."""

    def run(*arguments: str, kubeconfig: Path = kubeconfig) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        return subprocess.run(
            [*CLI, *arguments], env=environment, capture_output=True, text=True, timeout=180, check=False
        )

    return run


@pytest.fixture
def watching(kubeconfig: Path):
    """Starts a watch; returns when it has told the first line, so that what a test does next happens under its eyes."""
    begun: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        watch = subprocess.Popen([*CLI, "watch", name], env=environment, text=True, **pipes)
        begun.append(watch)
        assert watch.stdout.readline(), watch.stderr.read()
        return watch

    yield start
    for watch in begun:
        watch.kill()
        watch.communicate()


# watch


def test_watch_follows_several_jobs_to_their_end_and_fails_when_one_did(kube, namespace, operator, cli) -> None:
    kube.apply(job("good", run_for="20s").manifest(), namespace)
    wrong = '{"reason":"BadData","exit_code":65,"error":"no file"}'
    kube.apply(job("bad", exit_code="65", message=wrong, run_for="15s").manifest(), namespace)
    watched = cli("watch", "good", "bad")
    assert watched.returncode == 1, watched.stderr
    lines = [line.split(" ", 1)[1] for line in watched.stdout.splitlines()]
    assert "good: Succeeded" in lines
    assert any(line.startswith("bad: ") and "no file" in line for line in lines)
    assert cli("watch", "good").returncode == 0
    assert cli("watch").returncode == 0, "what had finished before does not count"


def test_watch_sees_through_an_api_server_that_restarts(kube, namespace, operator, cluster, watching) -> None:
    kube.apply(job("long", run_for="30s").manifest(), namespace)
    state(kube, namespace, "Running", "long")
    watch = watching("long")
    cluster.restart_api_server()
    told, wrong = watch.communicate(timeout=180)
    assert watch.returncode == 0, wrong
    assert "long: Succeeded" in told


def test_a_job_that_is_deleted_while_it_is_watched_counts_as_failed(kube, namespace, operator, watching) -> None:
    kube.apply(job("gone", run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running", "gone")
    watch = watching("gone")
    kube.delete("TrainingJob", "gone", namespace)
    told, _ = watch.communicate(timeout=180)
    assert watch.returncode == 1
    assert told.splitlines()[-1].endswith("gone: deleted")


# logs


@pytest.fixture
def logs(kube: Kube, cluster, namespace: str, tmp_path: Path) -> Iterator[Logs]:
    with kubelet(tmp_path) as (logs, port):
        cluster.add_node(node(namespace, port))
        kube.wait_condition("Node", namespace, "Ready", None, 30)
        yield logs
    kube.delete("Node", namespace, None)


def here(namespace: str, **annotations):
    """A job on the node whose kubelet tells logs."""
    tolerates = [{"key": LABEL, "operator": "Exists"}]
    made = job("train", **annotations).with_("spec.podTemplate.nodeSelector", {LABEL: namespace})
    return made.with_("spec.podTemplate.tolerations", tolerates).with_("spec.accelerator.perNode", 2)


def test_logs_of_all_ranks_are_merged_by_time(kube, namespace, operator, logs, cli) -> None:
    kube.apply(here(namespace, run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running")
    logs.write("train-0-1-0", "[rank 0] one", "2026-01-01T00:00:01Z")
    logs.write("train-0-1-0", "[rank 1] four", "2026-01-01T00:00:04Z")
    logs.write("train-0-1-1", "[rank 2] two", "2026-01-01T00:00:02Z")
    logs.write("train-0-1-1", "meeting the others", "2026-01-01T00:00:03Z")
    every = cli("logs", "train")
    assert every.stderr == ""
    shown = [re.sub(r"^\[(train-0-1-1)-\w+\]", r"[\1]", line) for line in every.stdout.splitlines()]
    assert shown == ["[rank 0] one", "[rank 2] two", "[train-0-1-1] meeting the others", "[rank 1] four"]
    assert cli("logs", "train", "--rank", "2").stdout == "two\n"
    assert cli("logs", "train", "--tail", "1", "--rank", "1", "--timestamps").stdout == "2026-01-01T00:00:04Z four\n"


def test_logs_are_followed_over_a_restart(kube, namespace, operator, logs, cli) -> None:
    kube.apply(here(namespace, run_for="15s", exit_code="1").with_("spec.maxRestarts", 1).manifest(), namespace)
    state(kube, namespace, "Running")

    def tell() -> None:
        for attempt in (1, 2):
            first, second = (f"train-0-{attempt}-{node}" for node in (0, 1))
            kube.wait_list("Pod", namespace, lambda pods, first=first: any(first in str(pod) for pod in pods))
            logs.write(first, f"[rank 0] attempt {attempt}")
            logs.end(first, second)

    teller = threading.Thread(target=tell)
    teller.start()
    followed = cli("logs", "train", "--follow", "--rank", "0")
    teller.join()
    assert followed.stdout == "attempt 1\nattempt 2\n", followed.stderr
    assert "--- attempt 2" in followed.stderr
    assert followed.returncode == 1, "the job failed"


# report, describe


def test_report_describes_a_run_in_every_format(kube, namespace, operator, cli) -> None:
    word = '{"reason":"Completed","exit_code":0,"step":200,"max_steps":200,"metrics":{"eval_loss":2.1}}'
    kube.apply(job("run", message=word).manifest(), namespace)
    state(kube, namespace, "Succeeded", "run")
    text = cli("report", "run").stdout
    assert "Succeeded: trained to step 200" in text
    assert "eval_loss" in text
    assert "learningRate 0.0003" in text
    told = json.loads(cli("report", "run", "--format", "json").stdout)
    assert (told["state"], told["metrics"]["eval_loss"], told["attempts"][0]["outcome"]) == (
        "Succeeded",
        "2.1",
        "Succeeded",
    )
    assert cli("report", "run", "--format", "md").stdout.startswith("# run\n")
    assert cli("report", "run", "--format", "html").stdout.startswith("<!doctype html>\n")


def test_describe_tells_a_quota_that_is_used_up(kube, namespace, operator, cli) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    kube.apply(quota, namespace)
    kube.wait_for(
        "ResourceQuota", "none", namespace, lambda obj: obj.get("status", {}).get("hard"), what="to be counted"
    )
    kube.apply(job().manifest(), namespace)
    kube.wait_condition("TrainingJob", "train", "Queued", namespace)
    told = cli("describe", "train")
    assert told.returncode == 0, told.stderr
    text = told.stdout
    assert "exceeded quota: none" in text
    assert "quota none: pods 0 of 0 used" in text


def test_describe_tells_what_would_help_an_unschedulable_job(kube, namespace, operator, cli) -> None:
    kube.apply(job().with_("spec.podTemplate.resources", {"requests": {"cpu": "9999"}}).manifest(), namespace)
    kube.wait_condition("TrainingJob", "train", "Queued", namespace)
    told = cli("describe", "train")
    assert told.returncode == 0, told.stderr
    text = told.stdout
    assert "-> ask for less cpu" in text
    assert "train-0-1-0" in text


def test_describe_tells_a_claim_that_is_missing_and_that_no_operator_looked(kube, namespace, cli) -> None:
    claim = {"persistentVolumeClaim": {"claimName": "runs"}}
    kube.apply(job().with_("spec.output", claim).manifest(), namespace)
    assert "its PersistentVolumeClaim runs does not exist" in cli("describe", "train").stdout
    time.sleep(11)
    assert "no operator has reconciled this job" in cli("describe", "train").stdout


# Mistakes


def test_a_misspelt_job_is_answered_with_the_name_that_was_meant(kube, namespace, cli) -> None:
    kube.apply(job("gpt-corpus").manifest(), namespace)
    for command in ("watch", "logs", "report", "describe"):
        told = cli(command, "gpt-corpsu")
        assert told.returncode == 2
        assert told.stderr == (
            f"error: no TrainingJob named 'gpt-corpsu' in namespace {namespace}; did you mean gpt-corpus?\n"
        )
    other = cli("report", "gpt-corpus", "-n", "default")
    assert f"; there is one in {namespace} (-n)" in other.stderr


def test_who_may_not_look_is_told_so_in_one_line(kube, namespace, cli, tmp_path) -> None:
    nobody = charts.as_service_account(kube, namespace, "default", tmp_path / "nobody").kubeconfig
    told = cli("describe", "any", "-n", namespace, kubeconfig=nobody)
    assert told.returncode == 2
    assert told.stderr.startswith("error: trainingjobs.trainwright.dev")
    assert "ask for the role `view`" in told.stderr
    assert told.stderr.count("\n") == 1


def test_a_cluster_that_does_not_answer_is_one_line_of_error(kube, namespace, cli, tmp_path) -> None:
    config = yaml.safe_load(kube.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    dead = tmp_path / "dead"
    dead.touch(mode=0o600)
    dead.write_text(yaml.safe_dump(config))
    told = cli("watch", "any", kubeconfig=dead)
    assert (told.returncode, told.stderr) == (2, "error: cannot reach https://127.0.0.1:9: Connection refused\n")


def test_a_context_that_does_not_exist_is_one_line_of_error(kube, namespace, cli) -> None:
    told = cli("watch", "any", "--context", "prod")
    assert told.returncode == 2
    assert told.stderr.startswith("error: no context named 'prod' in ")


def test_watch_says_that_a_namespace_has_no_jobs(kube, namespace, cli) -> None:
    told = cli("watch")
    assert (told.returncode, told.stderr) == (2, f"error: no TrainingJob in namespace {namespace}\n")


def test_it_is_a_kubectl_plugin(kube, namespace, cli) -> None:
    kube.apply(job("gpt").manifest(), namespace)
    found = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{found}:{os.environ['PATH']}", "KUBECONFIG": str(kube.kubeconfig)}
    arguments = ["trainwright", "report", "gpt", "-n", namespace, "--format", "json"]
    kubectl = str(charts.programs.program("kubectl"))
    told = subprocess.run([kubectl, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert json.loads(told.stdout)["name"] == "gpt", told.stderr


def test_the_python_example_submits_a_job_and_follows_it(kube, namespace, operator, tmp_path) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text(yaml.safe_dump(job("mine", run_for="1s").manifest()))
    example = str(CHECKOUT / "examples" / "submit_and_follow.py")
    environment = {**os.environ, "KUBECONFIG": str(kube.kubeconfig)}
    command = [sys.executable, example, str(manifest), "--namespace", namespace]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1].startswith("mine: Succeeded")
