"""Submit a TrainingJob and follow it to its end, with the official client: `pip install kubernetes pyyaml`.

python submit_and_follow.py gpt-on-stdlib.yaml --namespace team-a
"""

import argparse
import sys

import yaml
from kubernetes import client, config, dynamic, watch

JOBS = {"group": "trainwright.dev", "version": "v1alpha1", "plural": "trainingjobs"}


def submit(manifest: str, namespace: str) -> dict:
    """Apply every object of the manifest, and give its job as the API server stored it.

    A mistake raises ApiException, whose body names the field.
    """
    cluster = dynamic.DynamicClient(client.ApiClient())
    with open(manifest) as file:
        objects = list(yaml.safe_load_all(file))
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
    while True:  # a watch ends now and then, and is begun again
        jobs = watch.Watch().stream(
            client.CustomObjectsApi().list_namespaced_custom_object,
            **JOBS,
            namespace=namespace,
            field_selector=f"metadata.name={name}",
        )
        for event in jobs:
            status = event["object"].get("status", {})
            display = status.get("display", {})
            line = "  ".join(display.get(key, "") for key in ("state", "step", "loss", "ends")).strip()
            if line != shown:
                print(f"{name}: {line}", flush=True)
                shown = line
            if event["type"] == "DELETED" or status.get("state") in ("Succeeded", "Failed"):
                return status.get("state", "Deleted")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("--namespace", default="default")
    options = parser.parse_args()
    config.load_config()
    return 0 if follow(submit(options.manifest, options.namespace)) == "Succeeded" else 1


if __name__ == "__main__":
    sys.exit(main())
