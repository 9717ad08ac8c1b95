"""Imports what the ranks of a declarative job import on their way to the first step, for a process that is forked.

transformers imports most of its modules when a name of them is first used, so importing the package is not enough. What
is missed here costs time in each rank, and nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
from contextlib import suppress

from trainwright.declarative.environment import prepare_environment
from trainwright.launch.launcher import read_job

_MODULES = (
    "trainwright.declarative.job", "trainwright.trainer.seq2seq", "trainwright.distributed.ddp",
    "trainwright.training.session", "trainwright.training.loop", "trainwright.training.normalisation",
    "trainwright.footprint", "trainwright.integrations.expected_memory", "trainwright.integrations.reporter",
    "torch.nn.parallel", "torch.distributed.algorithms.join", "torch.utils.data", "torch.utils.serialization.config",
    "torch._dynamo", "datasets", "datasets.io.generator", "datasets.packaged_modules.generator.generator", "scipy.io",
    "pyarrow.compute", "pyarrow.parquet", "filelock", "safetensors.torch", "encodings.latin_1",
)  # fmt: skip
_OF_TRANSFORMERS = (
    "AutoConfig", "AutoTokenizer", "PreTrainedTokenizerFast", "PreTrainedModel", "GenerationMixin", "CONFIG_MAPPING",
    "DataCollatorForLanguageModeling", "DataCollatorForSeq2Seq", "DataCollatorWithPadding",
    "DataCollatorForTokenClassification",
)  # fmt: skip


def preload() -> None:
    """For the job of this process. Errors are left to the ranks."""
    job = read_job(os.environ)
    prepare_environment(job.offline)  # before anything imports transformers
    for name in _MODULES:
        with suppress(Exception):
            importlib.import_module(name)
    import transformers

    for name in _OF_TRANSFORMERS:
        with suppress(Exception):
            getattr(transformers, name)
    with suppress(Exception):
        _import_model(job.model or {})


def _import_model(model: dict[str, object]) -> None:
    """The code of the architecture, if it is known without a download."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, model_type_to_module_name

    source = str(model.get("source"))
    kind = source if source in CONFIG_MAPPING and not os.path.exists(source) else _type_of(source)
    module = model_type_to_module_name(kind)
    importlib.import_module(f"transformers.models.{module}.modeling_{module}")


def _type_of(source: str) -> str:
    """The architecture of a saved model: in a folder, or in the cache of the hub."""
    path = os.path.join(source, "config.json")
    if not os.path.isdir(source):
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(source, "config.json", local_files_only=True)
    with open(path, encoding="utf-8") as file:
        return str(json.load(file)["model_type"])
