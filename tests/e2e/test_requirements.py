"""``spec.script.requirements`` in real pods: wheels from a volume, a cache in the output, and what a mistake says."""

from __future__ import annotations

import base64

import pytest

from cluster.kube import Kube, Object
from demo import example
from e2e.jobs import ended, job, simple
from integration.charts import Helm
from wheels import wheel

CACHE = "/output/.trainwright/packages"
PROBE = f"""
import glob, greeting, os, sys
print("GREETING", greeting.VERSION, greeting.__file__, len(glob.glob("{CACHE}/*/*.whl")))
sys.exit(0 if os.path.exists("/output/second") else open("/output/second", "w").close() or 76)
"""


@pytest.fixture
def wheels(kube: Kube, namespace: str) -> Object:
    """A volume of the wheels, and the settings of pip that find them there."""
    files = dict([wheel("greeting", requires="torch>=2")])
    data = {name: base64.b64encode(content).decode() for name, content in files.items()}
    kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "wheels"}, "binaryData": data}, namespace)
    return {
        "env": [{"name": "PIP_NO_INDEX", "value": "1"}, {"name": "PIP_FIND_LINKS", "value": "/wheels"}],
        "volumes": [{"name": "wheels", "configMap": {"name": "wheels"}}],
        "volumeMounts": [{"name": "wheels", "mountPath": "/wheels"}],
    }


def test_a_script_gets_its_packages_in_every_pod_and_the_second_attempt_gets_them_from_the_output(
    release: Helm, kube: Kube, namespace: str, wheels: Object
) -> None:
    kube.apply(example()[1], namespace)
    script = {"inline": PROBE, "requirements": ["greeting"]}
    shared = {"persistentVolumeClaim": {"claimName": "runs"}}
    kube.apply(simple(script=script, output=shared, accelerator={"nodes": 2}, podTemplate=wheels), namespace)
    done = job(kube, namespace, ended, "to end", name="held")["status"]
    assert (done["state"], len(done["attempts"])) == ("Succeeded", 2), done  # 76 is not restarted in place
    pods = {pod["metadata"]["name"]: pod for pod in kube.list("Pod", namespace)}
    last = [name for name in pods if name.startswith("held-0-2-")]
    assert len(last) == 2
    for name in last:
        assert "GREETING 1.0 /opt/trainwright-packages/greeting.py 1" in kube.logs(name, namespace, container="trainer")
        said = kube.logs(name, namespace, container="trainwright-requirements")
        assert f"requirements: found in {CACHE}/" in said


def test_a_package_that_is_not_there_ends_the_job_with_its_name(
    release: Helm, kube: Kube, namespace: str, wheels: Object
) -> None:
    script = {"inline": PROBE, "requirements": ["greetings>=3"]}
    kube.apply(simple(script=script, podTemplate=wheels), namespace)
    done = job(kube, namespace, ended, "to end", name="held")["status"]
    failed = next(one for one in done["conditions"] if one["type"] == "Failed")
    assert (failed["reason"], done["restarts"]["counted"]) == ("BadConfiguration", 0), done
    assert "greetings>=3 is not in PIP_FIND_LINKS; correct its name or version" in failed["message"]


def test_an_index_that_cannot_be_reached_is_tried_again(release: Helm, kube: Kube, namespace: str) -> None:
    script = {"inline": PROBE, "requirements": ["greeting"]}
    template = {"env": [{"name": "PIP_RETRIES", "value": "1"}]}
    kube.apply(simple(script=script, maxRestarts=1, podTemplate=template), namespace)
    done = job(kube, namespace, ended, "to end", name="held")["status"]
    failed = next(one for one in done["conditions"] if one["type"] == "Failed")
    assert failed["reason"] == "TooManyRestarts"
    assert "the package index cannot be reached; set PIP_INDEX_URL" in failed["message"]
