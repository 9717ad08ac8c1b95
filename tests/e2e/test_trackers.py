"""A job whose pods die is one run of MLflow: a real server that asks for a password, which the pods have of a Secret.

The image is one of its own, so that it is there only where it was asked for.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cluster.jobs import SECURITY
from cluster.kind.provider import Kind
from cluster.kube import Kube, Object, condition_of
from demo import example
from e2e.jobs import ended, job, simple
from integration.charts import Helm

PASSWORD = "as-long-as-it-must-be"
URL = "http://mlflow:5000"
STEPS = 100
SETTINGS = f"""\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:////tmp/users.db
admin_username = admin
admin_password = {PASSWORD}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
SERVER = """\
exec /opt/mlflow/bin/mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 1 --allowed-hosts '*' \
    --backend-store-uri sqlite:////tmp/store.db --artifacts-destination /tmp/artifacts
"""
TRAINS = """
import time, torch
from trainwright import Trainer, TrainerCallback, TrainingArguments

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.25)  # so that a test can act in the middle

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def forward(self, x, labels):
        return (torch.nn.functional.mse_loss(self.layer(x), labels),)

torch.manual_seed(0)
data = [{"x": torch.tensor([i / 10]), "labels": torch.tensor([i / 5])} for i in range(40)]
Trainer(Line(), TrainingArguments.from_job(), train_dataset=data, callbacks=[Slow()]).train()
"""
READS = """
import json, mlflow
client = mlflow.MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
print(json.dumps([{
    "id": run.info.run_id, "name": run.info.run_name, "status": run.info.status, "parameters": len(run.data.params),
    "loss": [[one.step, one.value] for one in client.get_metric_history(run.info.run_id, "loss")],
} for run in runs]))
"""


@pytest.fixture
def mlflow_image(kind: Kind) -> str:
    try:
        return kind.image("trainer-mlflow")
    except KeyError:
        pytest.skip("the nodes have no image with MLflow: make images MORE=trainer-mlflow")


@pytest.fixture
def server(kube: Kube, namespace: str, mlflow_image: str) -> None:
    """MLflow in a pod, behind a Service; and the Secret of who may write."""
    login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    made = {"apiVersion": "v1", "metadata": {"name": "mlflow-credentials"}, "kind": "Secret", "stringData": login}
    kube.apply(made, namespace)
    kube.apply({**made, "metadata": {"name": "mlflow-server"}, "stringData": {"settings": SETTINGS}}, namespace)
    container = {
        **in_image(mlflow_image, "sh", "-c", SERVER),
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "MLFLOW_AUTH_CONFIG_PATH", "value": "/settings/settings"},
            {"name": "MLFLOW_FLASK_SERVER_SECRET_KEY", "value": "of-the-tests"},
        ],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 5000}, "periodSeconds": 1},
        "volumeMounts": [{"name": "settings", "mountPath": "/settings"}],
    }
    spec = {"containers": [container], "volumes": [{"name": "settings", "secret": {"secretName": "mlflow-server"}}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mlflow", "labels": {"app": "mlflow"}}, "spec": spec}
    kube.create(pod, namespace)
    service = {"selector": {"app": "mlflow"}, "ports": [{"port": 5000}]}
    kube.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mlflow"}, "spec": service}, namespace)
    kube.wait_for("Pod", "mlflow", namespace, lambda pod: condition_of(pod, "Ready") == "True", 120, "to serve")


def in_image(image: str, *command: str) -> Object:
    return {"name": "main", "image": image, "command": list(command), "securityContext": SECURITY}


TRACKED = {
    "env": [{"name": "MLFLOW_TRACKING_URI", "value": URL}, {"name": "MLFLOW_EXPERIMENT_NAME", "value": "tests"}],
    "envFrom": [{"secretRef": {"name": "mlflow-credentials"}}],
}


def test_three_attempts_of_a_job_are_one_run_of_mlflow(
    release: Helm, kube: Kube, namespace: str, mlflow_image: str, server: None
) -> None:
    kube.apply(example()[1], namespace)
    arguments = {"maxSteps": STEPS, "loggingSteps": 1, "saveStrategy": "steps", "saveSteps": 5, "useCpu": True}
    spec = {
        "script": {"inline": TRAINS},
        "trainingArguments": {**arguments, "reportTo": ["mlflow"], "runName": "thrice"},
        "podTemplate": {**TRACKED, "image": mlflow_image},
        "output": {"persistentVolumeClaim": {"claimName": "runs"}},
    }
    kube.apply(simple(**spec), namespace)
    in_attempt(kube, namespace, 1, step=8)
    kube.evict(pod_of(kube, namespace, 1), namespace)
    in_attempt(kube, namespace, 2, step=40)
    kube.delete("Pod", pod_of(kube, namespace, 2), namespace, gracePeriodSeconds=0)
    done = job(kube, namespace, ended, "to end", name="held")
    status = done["status"]
    assert (status["state"], len(status["attempts"])) == ("Succeeded", 3), status
    (run,) = read_back(kube, namespace, mlflow_image)
    assert (run["name"], run["status"]) == ("thrice", "FINISHED")
    assert run["parameters"] > 100
    losses = {(step, value) for step, value in run["loss"]}
    assert sorted(step for step, _ in losses) == list(range(1, STEPS + 1)), "a step is missing, or has two values"
    (page,) = status["runs"]
    assert page["tracker"] == "mlflow"
    assert page["url"].startswith(f"{URL}/#/experiments/")
    assert page["url"].endswith(f"/runs/{run['id']}")
    assert page["url"] in described(kube, namespace)
    assert PASSWORD not in json.dumps(done)


def in_attempt(kube: Kube, namespace: str, attempt: int, step: int) -> None:
    def is_there(status: Object) -> bool:
        progress = status.get("progress") or {}
        return progress.get("attempt") == attempt and progress.get("step", 0) >= step

    job(kube, namespace, is_there, f"to reach step {step} in attempt {attempt}", name="held")


def pod_of(kube: Kube, namespace: str, attempt: int) -> str:
    (pod,) = kube.list("Pod", namespace, f"trainwright.dev/job=held,trainwright.dev/attempt={attempt}")
    return str(pod["metadata"]["name"])


def read_back(kube: Kube, namespace: str, image: str) -> list[Object]:
    """What the server holds, asked by a pod with the same Secret."""
    container = {**in_image(image, "python", "-c", READS), **TRACKED}
    spec = {"restartPolicy": "Never", "containers": [container]}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reads"}, "spec": spec}, namespace)
    kube.wait_for("Pod", "reads", namespace, lambda pod: pod["status"]["phase"] in ("Succeeded", "Failed"), 120)
    read: list[Object] = json.loads(kube.logs("reads", namespace).splitlines()[-1])
    return read


def described(kube: Kube, namespace: str) -> str:
    command = [sys.executable, "-m", "trainwright_operator.cli", "describe", "held", "-n", namespace]
    return subprocess.run(
        [*command, "--kubeconfig", str(kube.kubeconfig)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
