"""Submit a TrainingJob and follow it to its end, with the official client: `pip install kubernetes pyyaml`.

python submit_and_follow.py gpt-on-stdlib.yaml --namespace team-a
"""

import argparse
import sys

import yaml
from kubernetes import client, config, watch

JOBS = {"group": "trainwright.dev", "version": "v1alpha1", "plural": "trainingjobs"}


def submit(manifest: str, namespace: str) -> dict:
    """Create the job and give it as the API server stored it; a mistake in it raises ApiException with the field."""
    with open(manifest) as file:
        job = yaml.safe_load(file)
    return client.CustomObjectsApi().create_namespaced_custom_object(
        **JOBS, namespace=namespace, body=job, field_validation="Strict"
    )


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
