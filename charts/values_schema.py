"""Writes the fields of a pool into values.schema.json, so that Helm refuses unknown fields.

The CRD validates the values of fields, when the pool is created.
"""

from __future__ import annotations

import json
from pathlib import Path

from trainwright_operator.api import declare
from trainwright_operator.api.pool import VENDORS, AcceleratorPool

PATH = Path(__file__).parent / "trainwright" / "values.schema.json"


def updated(text: str) -> str:
    schema = json.loads(text)
    spec = schema["properties"]["pools"]["additionalProperties"]["properties"]["spec"]
    spec["properties"] = {field.key: {} for field in declare.declared(AcceleratorPool)} | {
        "vendor": {"enum": list(VENDORS)}
    }
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(updated(PATH.read_text(encoding="utf-8")), encoding="utf-8")
