"""What a job adds to its pods beside the trainer: containers, affinity, spreading, DNS, the host's network."""

from __future__ import annotations

import pytest

from builders import make_job
from crd_judge import refused
from mutations import SPEC
from pool_cases import pool_manifest
from trainwright_operator.api import crd
from trainwright_operator.api.spec import AcceleratorPool, parse_pool
from trainwright_operator.core.children import children
from trainwright_operator.core.fixes import fixes_for
from trainwright_operator.core.placement.pools import BUILTIN, place
from trainwright_operator.core.placement.vendor import PoolError
from trainwright_operator.local.command import _ignored, _on_this_machine

REQUIRED, PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
UID = "0d9b8f3e-6a5c-4d1e-9f70-000000000001"
OWN = {"matchLabels": {"trainwright.dev/job-uid": UID, "trainwright.dev/attempt": "3"}}


def pod(template, job=None, pool=BUILTIN["cpu"]):
    built = (job or make_job()).with_("spec.podTemplate", template).build()
    return children(built, place(built, pool), 3)[-1]["spec"]["template"]["spec"]


# Containers

CORPUS = {"name": "corpus", "persistentVolumeClaim": {"claimName": "corpus"}}
BESIDE = {
    "volumes": [CORPUS],
    "initContainers": [
        {"name": "fetch", "command": ["fetch"], "volumeMounts": [{"name": "corpus", "mountPath": "/data"}]},
    ],
    "sidecars": [
        {
            "name": "sync",
            "image": "example.com/sync:1",
            "securityContext": {"runAsUser": 7, "readOnlyRootFilesystem": True},
            "volumeMounts": [
                {"name": "trainwright-output", "mountPath": "/output"},
                {"name": "trainwright-output", "mountPath": "/logs", "subPath": "gpt-corpus/logs"},
            ],
            "startupProbe": {"tcpSocket": {"port": 80}},
        }
    ],
}


def test_sidecars_start_first_and_run_along_and_init_containers_run_to_their_end():
    found = pod(BESIDE)
    sync, fetch = found["initContainers"]
    assert (sync["name"], sync["image"], sync["restartPolicy"]) == ("sync", "example.com/sync:1", "Always")
    assert sync["startupProbe"] == {"tcpSocket": {"port": 80}}
    assert (fetch["name"], fetch["command"], "restartPolicy" in fetch) == ("fetch", ["fetch"], False)
    assert fetch["image"] == found["containers"][0]["image"], "the trainer's, when none is named"
    assert [one["name"] for one in found["containers"]] == ["trainer"], "the operator reads the end of this one"
    assert CORPUS in found["volumes"], "though the trainer mounts it nowhere"


def test_the_output_is_the_jobs_own_folder_wherever_it_is_mounted():
    output, logs = pod(BESIDE)["initContainers"][0]["volumeMounts"]
    assert output == {"name": "trainwright-output", "mountPath": "/output", "subPath": "gpt-corpus"}
    assert logs["subPath"] == "gpt-corpus/logs"


def test_every_container_fits_the_restricted_standard():
    """Its controls, as Kubernetes lists them; runAsUser may be any but root."""
    found = pod(BESIDE)
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in (*found["initContainers"], *found["containers"]):
        context = one["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert (context["runAsNonRoot"], context.get("runAsUser", 1) > 0) == (True, True)
    assert found["initContainers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def sidecar(**more):
    return {"sidecars": [{"name": "a", **more}]}


def expressing(**expression):
    return {"matchExpressions": [{"key": "a", **expression}]}


def affinity(kind, how, terms):
    return {"affinity": {kind: {how: terms}}}


def spread(**more):
    return {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", **more}


OPEN = {"tcpSocket": {"port": 1}}
WISH = {"weight": 1, "preference": expressing(operator="Gt", values=["x"])}
EXISTS = {"topologyKey": ZONE, "labelSelector": expressing(operator="Exists", values=["b"])}
HEAVY = {"weight": 101, "podAffinityTerm": {"topologyKey": HOST}}
WRONG = {
    "no volume": (
        sidecar(volumeMounts=[{"name": "b", "mountPath": "/b"}]),
        "sidecars",
        "every mount must name",
    ),
    "the trainer's name": (
        {"initContainers": [{"name": "trainer"}]},
        "initContainers[0].name",
        "are reserved for the operator",
    ),
    "a name of the operator": (sidecar(name="trainwright-x"), "sidecars[0].name", "are reserved for the operator"),
    "one name for two": (
        {**sidecar(), "initContainers": [{"name": "a"}]},
        "sidecars",
        "has the same name as an init container",
    ),
    "root": (sidecar(securityContext={"runAsUser": 0}), "sidecars[0].securityContext.runAsUser", "1"),
    "privileged": (sidecar(securityContext={"privileged": True}), "sidecars[0].securityContext.privileged", ""),
    "two probes": (
        sidecar(startupProbe={**OPEN, "exec": {"command": ["x"]}}),
        "sidecars[0].startupProbe",
        "exactly one",
    ),
    "a probe before the trainer": (
        {"initContainers": [{"name": "a", "startupProbe": OPEN}]},
        "initContainers[0].startupProbe",
        "",
    ),
    "the rendezvous": (
        sidecar(env=[{"name": "PET_NNODES", "value": "1"}]),
        "sidecars[0].env[0].name",
        "is set by the operator",
    ),
    "a term without an expression": (
        affinity("nodeAffinity", REQUIRED, {"nodeSelectorTerms": [{}]}),
        f"affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions",
        "",
    ),
    "values of what exists": (
        affinity("podAffinity", REQUIRED, [EXISTS]),
        f"affinity.podAffinity.{REQUIRED}[0].labelSelector.matchExpressions[0].values",
        "take no values",
    ),
    "more than a text": (
        affinity("nodeAffinity", PREFERRED, [WISH]),
        f"affinity.nodeAffinity.{PREFERRED}[0].preference.matchExpressions[0].values",
        "one whole number",
    ),
    "a weight": (
        affinity("podAntiAffinity", PREFERRED, [HEAVY]),
        f"affinity.podAntiAffinity.{PREFERRED}[0].weight",
        "100",
    ),
    "spread twice": (
        {"topologySpreadConstraints": [spread(), spread(maxSkew=2)]},
        "topologySpreadConstraints",
        "two constraints",
    ),
    "few places": (
        {"topologySpreadConstraints": [spread(whenUnsatisfiable="ScheduleAnyway", minDomains=2)]},
        "topologySpreadConstraints[0].minDomains",
        "DoNotSchedule",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_at_its_place_here_and_by_the_crd(name):
    template, where, words = WRONG[name]
    manifest = make_job().with_("spec.podTemplate", template).manifest()
    (problem, *_) = crd.problems(manifest)
    assert problem.path == f"spec.podTemplate.{where}"
    assert words in problem.message
    unknown = name in ("privileged", "a probe before the trainer")  # those an API server prunes, or refuses when strict
    assert unknown or refused(SPEC, manifest["spec"])


# Where pods go

NEAR = {"topologyKey": ZONE}
FAR = {"topologyKey": HOST, "labelSelector": {"matchLabels": {"app": "noisy"}}}
NODES = {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gen", "operator": "In", "values": ["b"]}]}]}}


def test_affinity_is_the_jobs_own_and_means_its_own_pods_where_it_names_none():
    stated = {
        "nodeAffinity": NODES,
        "podAffinity": {PREFERRED: [{"weight": 9, "podAffinityTerm": NEAR}]},
        "podAntiAffinity": {REQUIRED: [FAR]},
    }
    found = pod({"affinity": stated})["affinity"]
    assert found["nodeAffinity"] == NODES
    assert found["podAffinity"][PREFERRED] == [{"weight": 9, "podAffinityTerm": {**NEAR, "labelSelector": OWN}}]
    assert found["podAntiAffinity"] == {REQUIRED: [FAR]}
    assert "affinity" not in pod({})


def test_affinity_stands_beside_that_of_the_pool():
    pool = parse_pool(pool_manifest("v6e-16"))
    alone = pod({}, pool=pool)["affinity"]
    stated = {"nodeAffinity": NODES, "podAffinity": {REQUIRED: [NEAR], PREFERRED: []}}
    found = pod({"affinity": stated}, pool=pool)["affinity"]
    assert found["podAntiAffinity"] == alone["podAntiAffinity"]
    assert found["podAffinity"][REQUIRED] == [*alone["podAffinity"][REQUIRED], {**NEAR, "labelSelector": OWN}]
    assert found["nodeAffinity"] == NODES


def test_pods_are_spread_and_counted_with_their_own():
    one = {"maxSkew": 1, "topologyKey": HOST, "whenUnsatisfiable": "DoNotSchedule"}
    other = {**one, "topologyKey": ZONE, "labelSelector": {"matchLabels": {"app": "x"}}}
    found = pod({"topologySpreadConstraints": [one, other]})["topologySpreadConstraints"]
    assert found == [{**one, "labelSelector": OWN}, other]


# The pod itself


def test_dns_and_the_runtime_class_of_a_job_go_before_those_of_its_pool():
    dns = {"nameservers": ["10.0.0.1"], "options": [{"name": "ndots", "value": "2"}]}
    pool = AcceleratorPool("p", "nvidia", runtime_class_name="nvidia")
    found = pod({"dnsConfig": dns, "runtimeClassName": "gvisor"}, pool=pool)
    assert (found["dnsConfig"], found["runtimeClassName"]) == (dns, "gvisor")
    assert pod({}, pool=pool)["runtimeClassName"] == "nvidia"
    assert "dnsPolicy" not in found


def test_the_hosts_network_is_for_pools_that_allow_it_and_a_port_is_one_pods():
    allows = parse_pool({**pool_manifest("cpu-8"), "spec": {"vendor": "cpu", "allowHostNetwork": True}})
    found = pod({"hostNetwork": True}, pool=allows)
    assert (found["hostNetwork"], found["dnsPolicy"]) == (True, "ClusterFirstWithHostNet"), "or no peer has a name"
    assert found["containers"][0]["ports"] == [{"containerPort": 29400, "hostPort": 29400}]
    assert "ports" not in pod({}, pool=allows)["containers"][0]
    with pytest.raises(PoolError, match=r"^spec\.podTemplate\.hostNetwork: pool 'cpu' does not allow it"):
        pod({"hostNetwork": True})


def test_pods_that_find_no_free_port_are_reported_with_the_fix():
    (mend,) = fixes_for("0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports.")
    assert "hostNetwork" in mend


def test_what_this_machine_passes_over_is_said():
    template = {**BESIDE, "dnsConfig": {"searches": ["a"]}, "runtimeClassName": "gvisor", "hostNetwork": True}
    job = _on_this_machine(make_job().with_("spec.podTemplate", template).build())
    assert list(_ignored(job.spec.pod_template)) == [
        "initContainers are not run here (fetch); do their work first",
        "sidecars are not run here (sync); start what the trainer needs",
        "dnsConfig is not used here; this machine's resolver is used",
        "runtimeClassName (gvisor) is not used here",
    ]
    place(job, BUILTIN["cpu"])
    assert list(_ignored(make_job().build().spec.pod_template)) == []
