"""What an API server would refuse or prune of a status."""

from __future__ import annotations

from jsonschema import Draft202012Validator

from trainwright_operator.api.crd import job_crd


def _strict(schema_: dict) -> dict:
    """Also refuses what an API server would prune: a status that is pruned would be written again and again."""
    schema_ = {key: _strict(value) if isinstance(value, dict) else value for key, value in schema_.items()}
    return {**schema_, "additionalProperties": False} if "properties" in schema_ and "type" in schema_ else schema_


STATUS = Draft202012Validator(
    _strict(job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"])
)


def problems(status: dict) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in STATUS.iter_errors(status)]
