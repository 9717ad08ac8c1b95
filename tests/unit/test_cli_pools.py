"""Pools on the command line: what moves with a job, what does not fit, and what this machine cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import make_job
from pool_cases import pool_manifest
from trainwright.contract import UserError
from trainwright_operator.api import manifest
from trainwright_operator.api.spec import parse_pool
from trainwright_operator.cli import main
from trainwright_operator.core.placement.pools import place
from trainwright_operator.local import devices

EXAMPLES = Path(__file__).parents[2] / "examples"
PLANNED = {
    "nvidia-8xh100-2-nodes": {"nvidia.com/gpu": "8", "rdma/ib": 8},
    "nvidia-gpudirect-gke": {"nvidia.com/gpu": "8"},
    "amd-mi300x": {"amd.com/gpu": "8"},
    "tpu-v6e-4x4": {"google.com/tpu": "4"},
    "tpu-multislice": {"google.com/tpu": "4"},
    "mig": {"nvidia.com/mig-1g.5gb": "1"},
    "dra": {},
    "cpu": {},
    "any-vendor": {"nvidia.com/gpu": "8"},
    "volcano": {},
    "fsdp-cpu": {},
    "lora": {},
    "fsdp-llama-7b": {"nvidia.com/gpu": "8", "rdma/ib": 8},
    "fsdp-llama-7b-mi300x": {"amd.com/gpu": "8", "rdma/ib": 8},
}


def written(folder: Path, *objects) -> str:
    path = folder / "manifests.yaml"
    path.write_text(manifest.write(*objects))
    return str(path)


def job_on(pool, **asked):
    return make_job().with_("spec.accelerator", {"pool": pool, **asked}).without("metadata.uid").manifest()


@pytest.mark.parametrize("name", PLANNED)
def test_every_example_is_planned(name, capsys):
    assert main(["plan", str(EXAMPLES / f"{name}.yaml")]) == 0
    jobs = [one.content for one in manifest.read(capsys.readouterr().out, "out") if one.content["kind"] == "Job"]
    for job in jobs:
        limits = job["spec"]["template"]["spec"]["containers"][0]["resources"].get("limits", {})
        assert PLANNED[name].items() <= limits.items()
        assert len(job["spec"]["template"]["spec"]["containers"][0]["resources"]) > 0


def test_pods_get_the_volumes_and_annotations_of_their_pool(capsys):
    assert main(["plan", str(EXAMPLES / "nvidia-gpudirect-gke.yaml")]) == 0
    job = next(one.content for one in manifest.read(capsys.readouterr().out, "out") if one.content["kind"] == "Job")
    template = job["spec"]["template"]
    pod, container = template["spec"], template["spec"]["containers"][0]
    assert '"network": "rdma-7"' in template["metadata"]["annotations"]["networking.gke.io/interfaces"]
    assert {"name": "gib", "hostPath": {"path": "/home/kubernetes/bin/gib", "type": "Directory"}} in pod["volumes"]
    assert {"name": "gib", "mountPath": "/usr/local/gib", "readOnly": True} in container["volumeMounts"]
    shm = next(one for one in pod["volumes"] if one["name"] == "trainwright-shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "250Gi"}


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_shape_that_does_not_fit_is_told_with_its_line(command, tmp_path, capsys):
    path = written(tmp_path, pool_manifest("v6e-16", chipsPerHost=8), job_on("v6e-16", nodes=3))
    assert main([command, path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    number = 1 + Path(path).read_text().splitlines().index("    nodes: 3")
    words = "topology 4x4 has 16 chips, 16 / 8 per host = 2 hosts; nodes: 3 asked"
    assert line == f"{path}:{number}: spec.accelerator.nodes: {words}"


def test_a_pool_that_is_only_in_the_cluster_is_left_to_the_cluster(tmp_path):
    assert main(["validate", written(tmp_path, job_on("somewhere"))]) == 0


def test_a_job_may_be_planned_on_another_pool_that_is_known(capsys):
    assert main(["plan", str(EXAMPLES / "any-vendor.yaml"), "--pool", "v6e-16"]) == 0
    assert "TORCH_TPU_TOPOLOGY" in capsys.readouterr().out
    assert main(["plan", str(EXAMPLES / "any-vendor.yaml"), "--pool", "v6e"]) == 2
    assert "pool 'v6e' is not known here (cpu, h100, mi300x, v6e-16, cpu-16)" in capsys.readouterr().err


def test_the_difference_between_vendors_is_what_changes_and_nothing_else(capsys):
    vendors = ["mi300x", "v6e-16", "cpu-16"]
    arguments = [each for vendor in vendors for each in ("--diff", vendor)]
    assert main(["plan", str(EXAMPLES / "any-vendor.yaml"), *arguments]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("from")] == [
        f"from pool {vendor} to pool h100" for vendor in vendors
    ]
    amd = out.partition("from pool v6e-16")[0]
    fields = [line.split()[1] for line in amd.splitlines() if line[0] in "-+~"]
    assert set(fields) == {
        "env.HSA_FORCE_FINE_GRAIN_PCIE",
        "env.TRAINWRIGHT_VENDOR",
        "image",
        "pod.nodeSelector.amd.com/gpu.product-name",
        "pod.nodeSelector.nvidia.com/gpu.product",
        "pod.securityContext.supplementalGroups",
        "pod.tolerations.amd.com/gpu",
        "pod.tolerations.nvidia.com/gpu",
        "resources.limits.amd.com/gpu",
        "resources.limits.nvidia.com/gpu",
        "resources.requests.amd.com/gpu",
        "resources.requests.nvidia.com/gpu",
    }
    assert "- Service tj-any-vendor" in out
    assert "\x1b" not in out


def test_a_second_slice_is_a_second_job(tmp_path, capsys):
    path = written(tmp_path, pool_manifest("v6e-16"), pool_manifest("v6e-2x16"), job_on("v6e-2x16"))
    assert main(["plan", path, "--diff", "v6e-16"]) == 0
    out = capsys.readouterr().out
    assert "+ Job gpt-corpus-1-1 (4 pods)" in out
    assert "MEGASCALE_SLICE_ID" in out


def test_a_difference_is_coloured_only_when_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["plan", str(EXAMPLES / "any-vendor.yaml"), "--diff", "mi300x"]) == 0
    assert "\x1b[31m-   env.HSA_FORCE_FINE_GRAIN_PCIE" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["plan", str(EXAMPLES / "any-vendor.yaml"), "--diff", "mi300x"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def refusal(pool, found, **asked):
    parsed = parse_pool(pool_manifest(pool))
    with pytest.raises(UserError) as refused:
        devices.check(
            parsed, place(make_job().with_("spec.accelerator", {"pool": pool, **asked}).build(), parsed), found
        )
    return str(refused.value)


def test_a_machine_without_the_devices_says_so_and_what_to_do():
    assert refusal("h100", 0) == (
        "spec.accelerator.pool: 'h100' is a pool of vendor nvidia, whose pods take 8 devices each, and this machine "
        "has none; `--pool cpu` trains the same job here on CPU"
    )
    assert "this machine has only 1;" in refusal("mi300x", 1, perNode=2)
    assert "and 2 pods would share the devices of this machine" in refusal("h100-gke", 8, nodes=2)


def test_a_machine_with_enough_of_them_runs_it():
    pool = parse_pool(pool_manifest("h100-gke"))
    job = make_job().with_("spec.accelerator", {"pool": "h100-gke", "perNode": 2}).build()
    devices.check(pool, place(job, pool), found=2)


@pytest.mark.parametrize(("runtime", "runs"), [("torch_xla", True), ("torchtpu", False)])
def test_pytorch_xla_takes_the_cpu_for_a_tpu_where_its_pool_says_so(runtime, runs, monkeypatch):
    monkeypatch.setattr(devices, "count", lambda vendor: 0)
    pool = pool_manifest("v5e-8")
    pool["spec"] |= {"runtime": runtime, "env": [{"name": "PJRT_DEVICE", "value": "CPU"}]}
    parsed, job = parse_pool(pool), make_job().with_("spec.accelerator", {"pool": "v5e-8"}).build()
    if runs:
        devices.check(parsed, place(job, parsed))
        return
    with pytest.raises(UserError, match="this machine has none"):
        devices.check(parsed, place(job, parsed))


@pytest.mark.parametrize("asked", [{}, {"pool": "unknown-here"}])
def test_resources_that_no_api_server_takes_are_told_with_their_line(tmp_path, capsys, asked):
    resources = {"requests": {"memory": "8Gi"}, "limits": {"memory": "4Gi"}}
    job = make_job().with_("spec.podTemplate", {"resources": resources}).with_("spec.accelerator", asked)
    path = written(tmp_path, job.without("metadata.uid").manifest())
    assert main(["validate", path]) == 2
    line = 1 + [text.strip() for text in Path(path).read_text().splitlines()].index("requests:")
    told = capsys.readouterr()
    assert told.out == "", "it is not said to be valid beside it"
    assert told.err == (
        f"{path}:{line}: spec.podTemplate.resources.requests: memory is 8Gi, over its limit of 4Gi; "
        "lower it, or raise the limit\n"
    )
