"""The children of an attempt: names, security, what a pod is told, and what the job adds to it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from builders import make_job
from trainwright.contract import ResolvedJob
from trainwright_operator.api.spec import AcceleratorPool, SecretKey
from trainwright_operator.core.children import children
from trainwright_operator.core.gangs import PodGroup
from trainwright_operator.core.placement.pools import BUILTIN, place
from trainwright_operator.core.pods import PushEndpoint


def planned(job, attempt=1, endpoint=None):
    built = job.build()
    return {child["kind"]: child for child in children(built, place(built, BUILTIN["cpu"]), attempt, endpoint)}


def pod_of(found):
    return found["Job"]["spec"]["template"]["spec"]


def container_of(found):
    return pod_of(found)["containers"][0]


def env_of(found):
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container_of(found)["env"]}


def test_the_job_leaves_failures_to_the_policy():
    spec = planned(make_job().nodes(3))["Job"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert "podFailurePolicy" not in spec


def test_names_fit_a_hostname():
    name = "a" * 40
    found = planned(make_job(name).nodes(1000), attempt=99_999)
    assert len(f"{found['Job']['metadata']['name']}-999") <= 63
    assert len(found["Service"]["metadata"]["name"]) <= 63


def test_the_service_finds_ranks_before_they_are_ready():
    found = planned(make_job().nodes(2))
    spec = found["Service"]["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
    labels = found["Job"]["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"].items() <= labels.items()
    assert pod_of(found)["subdomain"] == found["Service"]["metadata"]["name"]


def test_pods_get_the_rendezvous_in_torchruns_variables():
    env = env_of(planned(make_job().nodes(2, 4), attempt=7))
    assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"], env["PET_MASTER_PORT"]) == ("2", "4", "29400")
    assert env["PET_MASTER_ADDR"] == "gpt-corpus-0-7-0.tj-gpt-corpus"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert env["PET_NODE_RANK"] == {"fieldRef": {"fieldPath": index}}


def test_every_child_is_owned_and_labelled():
    for child in planned(make_job().nodes(2)).values():
        owner = child["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("TrainingJob", "gpt-corpus", True)
        assert child["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "trainwright"
        assert len(child["metadata"]["annotations"]["trainwright.dev/hash"]) == 16


def test_the_same_job_gives_the_same_bytes_and_another_one_another_hash():
    def digest(job):
        return planned(job)["Job"]["metadata"]["annotations"]["trainwright.dev/hash"]

    assert json.dumps(planned(make_job())) == json.dumps(planned(make_job()))
    assert digest(make_job()) != digest(make_job().training(learningRate=1e-4))


def test_the_pod_fits_the_restricted_standard():
    found = planned(make_job())
    pod, container = pod_of(found), container_of(found)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }
    assert pod["automountServiceAccountToken"] is False


def test_every_path_that_must_be_writable_is_mounted():
    found = planned(make_job())
    mounts = {one["mountPath"]: one for one in container_of(found)["volumeMounts"]}
    volumes = {one["name"]: one for one in pod_of(found)["volumes"]}
    assert set(mounts) == {"/etc/trainwright", "/output", "/home/trainer", "/tmp", "/dev/shm"}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"] == {"medium": "Memory"}
    assert mounts["/output"]["subPath"] == "gpt-corpus"
    assert env_of(found)["HOME"] == "/home/trainer"
    assert {one["name"] for one in mounts.values()} == set(volumes)


def test_a_lost_node_is_left_after_thirty_seconds():
    found = [one for one in pod_of(planned(make_job()))["tolerations"] if one.get("tolerationSeconds") == 30]
    assert {one["key"] for one in found} == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}


def test_the_resolved_job_rides_in_the_template():
    job = make_job().training(evalStrategy="steps").with_("spec.hangTimeoutSeconds", 90)
    found = planned(job, attempt=3)
    template = found["Job"]["spec"]["template"]
    resolved = ResolvedJob.from_json(template["metadata"]["annotations"]["trainwright.dev/resolved-job"])
    assert (resolved.attempt, resolved.nodes, resolved.per_node, resolved.hang_timeout_seconds) == (3, 1, 1, 90)
    assert resolved.training_arguments == {"max_steps": 200, "learning_rate": 3e-4, "eval_strategy": "steps"}
    assert resolved.model["fromConfig"]["n_layer"] == 2
    source = pod_of(found)["volumes"][0]["projected"]["sources"][0]["downwardAPI"]["items"][0]
    assert source["path"] == "job.json"
    assert source["fieldRef"]["fieldPath"] == "metadata.annotations['trainwright.dev/resolved-job']"


def test_what_is_watched_and_checked_reaches_the_pods_only_if_it_is_asked_for() -> None:
    def resolved(job):
        text = planned(job)["Job"]["spec"]["template"]["metadata"]["annotations"]["trainwright.dev/resolved-job"]
        return ResolvedJob.from_json(text)

    found = resolved(make_job().with_("spec.onAnomaly", "Ignore"))
    assert (found.on_anomaly, found.anomaly_factor, found.preflight) == (None, None, None)
    asked = make_job().with_("spec.onAnomaly", "Skip").with_("spec.anomalyFactor", 4)
    found = resolved(asked.with_("spec.preflight", {"timeoutSeconds": 60}))
    assert (found.on_anomaly, found.anomaly_factor) == ("Skip", 4)
    assert found.preflight == {"timeoutSeconds": 60, "maxSlowdown": 3.0}
    assert resolved(make_job().with_("spec.preflight", {})).preflight == {"timeoutSeconds": 300, "maxSlowdown": 3.0}


def test_a_large_resolved_job_takes_a_config_map():
    found = planned(make_job().script(inline='"' * 60_000), attempt=2)
    assert found["ConfigMap"]["metadata"]["name"] == "tj-gpt-corpus-2"
    assert found["ConfigMap"]["immutable"] is True
    assert "trainwright.dev/resolved-job" not in found["Job"]["spec"]["template"]["metadata"]["annotations"]
    source = pod_of(found)["volumes"][0]["projected"]["sources"][0]["configMap"]
    assert source == {"name": "tj-gpt-corpus-2", "items": [{"key": "job.json", "path": "job.json"}]}


def test_a_script_in_a_config_map_is_mounted_where_the_resolved_job_says():
    found = planned(make_job().script(configMap={"name": "code", "key": "train.py"}, args=["--fast"]))
    text = found["Job"]["spec"]["template"]["metadata"]["annotations"]["trainwright.dev/resolved-job"]
    assert json.loads(text)["script"]["path"] == "/etc/trainwright/script/train.py"
    source = pod_of(found)["volumes"][0]["projected"]["sources"][1]["configMap"]
    assert source == {"name": "code", "items": [{"key": "train.py", "path": "script/train.py"}]}


@pytest.mark.parametrize("asked", [True, False, None])
def test_an_overlay_is_told_where_an_older_trainer_would_refuse_it(asked: bool | None):
    script = {"path": "/src/train.py"} | ({} if asked is None else {"overlay": asked})
    found = planned(make_job().script(**script))
    text = found["Job"]["spec"]["template"]["metadata"]["annotations"]["trainwright.dev/resolved-job"]
    resolved = json.loads(text)
    assert (resolved["overlay"], resolved["script"]) == (bool(asked), {"path": "/src/train.py"})


def test_the_progress_endpoint_is_told_with_a_token_of_its_own():
    endpoint = PushEndpoint("https://progress/x", "trainwright.dev/progress/default/gpt-corpus", "-----BEGIN")
    found = planned(make_job(), endpoint=endpoint)
    env = env_of(found)
    assert env["KUBEFLOW_TRAINER_SERVER_URL"] == "https://progress/x"
    assert env["KUBEFLOW_TRAINER_SERVER_TOKEN"] == "/etc/trainwright/progress-token"
    sources = pod_of(found)["volumes"][0]["projected"]["sources"]
    token = next(one["serviceAccountToken"] for one in sources if "serviceAccountToken" in one)
    assert (token["audience"], token["path"]) == (endpoint.audience, "progress-token")
    assert "KUBEFLOW_TRAINER_SERVER_URL" not in env_of(planned(make_job()))


@pytest.mark.parametrize(
    ("template", "name", "value"),
    [
        ({"env": [{"name": "OMP_NUM_THREADS", "value": "3"}]}, "OMP_NUM_THREADS", "3"),
        ({"env": [{"name": "WANDB", "value": "off"}]}, "WANDB", "off"),
    ],
)
def test_the_jobs_environment_wins(template, name, value):
    found = planned(make_job().with_("spec.podTemplate", template))
    assert env_of(found)[name] == value
    assert len(container_of(found)["env"]) == len(env_of(found)), "each name once"


def test_the_pod_template_is_merged():
    template = {
        "metadata": {"labels": {"team": "nlp"}, "annotations": {"a": "b"}},
        "serviceAccountName": "reader",
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "pull"}],
        "envFrom": [{"secretRef": {"name": "s3"}}],
        "volumes": [{"name": "corpus", "persistentVolumeClaim": {"claimName": "corpus"}}],
        "volumeMounts": [{"name": "corpus", "mountPath": "/data"}, {"name": "corpus", "mountPath": "/tmp"}],
        "resources": {"limits": {"memory": "4Gi"}},
    }
    found = planned(make_job().with_("spec.podTemplate", template))
    pod, container = pod_of(found), container_of(found)
    labels = found["Job"]["spec"]["template"]["metadata"]["labels"]
    assert (labels["team"], labels["trainwright.dev/job"]) == ("nlp", "gpt-corpus")
    assert (pod["serviceAccountName"], pod["priorityClassName"]) == ("reader", "high")
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert container["resources"] == {"requests": {"cpu": "1"}, "limits": {"memory": "4Gi"}}
    at_tmp = [one for one in container["volumeMounts"] if one["mountPath"] == "/tmp"]
    assert at_tmp == [{"name": "corpus", "mountPath": "/tmp"}], "the job's own /tmp goes before ours"


def test_nobody_overrides_the_rendezvous():
    pool = AcceleratorPool("p", "cpu", env=({"name": "PET_NNODES", "value": "9"}, {"name": "A", "value": "1"}))
    job = make_job().build()
    pod = children(job, place(job, pool), 1)[0]["spec"]["template"]["spec"]
    told = [(one["name"], one.get("value")) for one in pod["containers"][0]["env"]]
    assert ("PET_NNODES", "1") in told
    assert ("PET_NNODES", "9") not in told
    assert ("A", "1") in told


def test_the_hub_token_and_offline_mode_reach_the_pod():
    job = make_job().with_("spec.offline", True).build()
    job = replace(job, spec=replace(job.spec, hub_token=SecretKey("hub", "token")))
    pod = children(job, place(job, BUILTIN["cpu"]), 1)[0]["spec"]["template"]["spec"]
    env = {one["name"]: one.get("value", one.get("valueFrom")) for one in pod["containers"][0]["env"]}
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert env["HF_HUB_OFFLINE"] == "1"


def metadata_of(job, propagated=None, pool="cpu", **more):
    """Labels and annotations of every child that the plan creates, and of the pods."""
    built = replace(job.build(), propagated=propagated or {})
    found = children(built, place(built, BUILTIN[pool]), 1, **more)
    pods = [child["spec"]["template"] for child in found if child["kind"] == "Job"]
    return {one.get("kind", "Pod"): one["metadata"] for one in (*found, *pods)}


def test_the_job_template_is_for_the_job_alone():
    template = {"metadata": {"labels": {"team": "nlp"}, "annotations": {"example.com/cost": "7"}}}
    found = metadata_of(make_job().nodes(2).with_("spec.jobTemplate", template))
    assert found["Job"]["labels"]["team"] == "nlp"
    assert found["Job"]["annotations"].keys() == {"example.com/cost", "trainwright.dev/hash"}
    assert all("team" not in found[kind]["labels"] for kind in ("Pod", "Service"))
    plain = metadata_of(make_job().nodes(2))
    assert plain["Job"]["annotations"].keys() == {"trainwright.dev/hash"}
    hashes = [one["Job"]["annotations"]["trainwright.dev/hash"] for one in (found, plain)]
    assert hashes[0] != hashes[1]
    assert found["Service"] == plain["Service"]


def test_labels_that_are_passed_on_are_borne_by_every_child_and_never_hide_another():
    job = make_job().nodes(2).with_("spec.jobTemplate", {"metadata": {"labels": {"team": "of-the-Job"}}})
    job = job.script(inline="x = 'é'\n" * 7_000).without("spec.trainingArguments")
    job = job.with_("spec.podTemplate", {"metadata": {"labels": {"team": "of-the-pods"}}})
    found = metadata_of(
        job,
        {"team": "nlp", "cost": "7", "trainwright.dev/job": "forged"},
        scheduler=PodGroup("scheduling.k8s.io/v1beta1"),
    )
    assert found.keys() == {"Service", "ConfigMap", "PodGroup", "Job", "Pod"}
    assert {kind: one["labels"]["cost"] for kind, one in found.items()} == dict.fromkeys(found, "7")
    teams = {kind: one["labels"]["team"] for kind, one in found.items()}
    assert teams == {**dict.fromkeys(found, "nlp"), "Job": "of-the-Job", "Pod": "of-the-pods"}
    assert {one["labels"]["trainwright.dev/job"] for one in found.values()} == {"gpt-corpus"}
