"""Submit a TrainingJob and follow it to its end, with the official client: `pip install kubernetes pyyaml`.

python submit_and_follow.py gpt-on-stdlib.yaml --namespace team-a
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator

import urllib3
import yaml
from kubernetes import client, config, dynamic, watch

JOBS = {"group": "trainwright.dev", "version": "v1alpha1", "plural": "trainingjobs"}


class Manifest(yaml.SafeLoader):
    """Reads 3e-4 as the number that kubectl reads: PyYAML takes it for text, which the API server refuses."""


Manifest.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def submit(manifest: str, namespace: str) -> dict:
    """Apply every object of the manifest, and give its job as the API server stored it.

    A mistake raises ApiException, whose body names the field.
    """
    cluster = dynamic.DynamicClient(client.ApiClient())
    with open(manifest) as file:
        objects = [one for one in yaml.load_all(file, Manifest) if one]  # none in an empty document
    stored = [
        cluster.resources.get(api_version=one["apiVersion"], kind=one["kind"]).server_side_apply(
            one, namespace=namespace, field_manager="submit-and-follow", query_params=[("fieldValidation", "Strict")]
        )
        for one in objects
    ]
    return next(one.to_dict() for one in stored if one.kind == "TrainingJob")


def follow(job: dict) -> str:
    """Print each change until the job has finished; gives its last state."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    shown = ""
    for event in changes(name, namespace):
        status = event["object"].get("status", {})
        display = status.get("display", {})
        line = "  ".join(display.get(key, "") for key in ("state", "step", "loss", "ends")).strip()
        if line != shown:
            print(f"{name}: {line}", flush=True)
            shown = line
        if event["type"] == "DELETED" or status.get("state") in ("Succeeded", "Failed"):
            break
    return status.get("state", "Deleted")


def changes(name: str, namespace: str) -> Iterator[dict]:
    """The job as it is and after each change, without end: a watch that ends or is cut off is begun again."""
    while True:
        try:
            yield from watch.Watch().stream(
                client.CustomObjectsApi().list_namespaced_custom_object,
                **JOBS,
                namespace=namespace,
                field_selector=f"metadata.name={name}",
            )
        except (urllib3.exceptions.HTTPError, client.ApiException) as error:
            code = getattr(error, "status", None) or 0
            if 400 <= code < 500 and code not in (410, 429):  # too old and too many pass, a refusal does not
                raise
            time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("--namespace", default="default")
    options = parser.parse_args()
    config.load_config()
    return 0 if follow(submit(options.manifest, options.namespace)) == "Succeeded" else 1


if __name__ == "__main__":
    sys.exit(main())
