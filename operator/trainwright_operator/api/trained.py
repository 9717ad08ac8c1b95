"""The parts of ``spec`` that define the training: model, dataset and task, or a script; and the sample."""

from __future__ import annotations

from trainwright_operator.api import formats
from trainwright_operator.api.types import (
    Rule,
    Schema,
    boolean,
    exactly_one,
    free_map,
    integer,
    list_of,
    number,
    record,
    string,
)

TASKS = ("CausalLM", "MaskedLM", "Seq2SeqLM", "SequenceClassification", "TokenClassification")
FORMATS = ("text", "json", "csv", "parquet", "hub")
MAX_INLINE_SCRIPT = 64 * 1024
MAX_REQUIREMENTS = 64

ROLES = {
    "text": "The text.",
    "textPair": "The second text of a pair.",
    "label": "The class of a text.",
    "source": "The text to translate or to summarize.",
    "target": "The expected output text.",
    "tokens": "The tokens of a sentence.",
    "tags": "The tag of each token.",
}


def model() -> Schema:
    return record(
        "The model, from the Transformers library: saved weights, or new weights from a configuration.",
        {
            "source": string(
                "A hub id, a folder in the pod, or, with fromConfig, a model type such as gpt2 (no download).",
                1024,
                least=1,
                pattern=formats.NO_SPACE,
            ),
            "revision": string(
                "Branch, tag or commit of a hub id. Default: main.", 255, least=1, pattern=formats.NO_SPACE
            ),
            "fromConfig": free_map(
                "Train from new weights: overrides for the configuration of source, with the names of its config.json "
                "(n_layer, hidden_size, ...). If present, even if empty, no weights are loaded."
            ),
            "tokenizer": string(
                "Hub id or folder of the tokenizer; bytes means one token per byte, without a file. Default: source.",
                1024,
                least=1,
                pattern=formats.NO_SPACE,
            ),
            "trustRemoteCode": boolean("Run Python code from the model's repository. Default: false."),
            "dtype": string(
                "Type of the loaded weights. Default: float32; mixed precision is bf16 or fp16 in trainingArguments.",
                among=["auto", "float32", "bfloat16", "float16"],
            ),
        },
        required={"source": "is missing: give a hub id, a folder, or a model type with fromConfig"},
    )


def dataset() -> Schema:
    return record(
        "The data: files, a hub dataset, or stdlib://*.py, the source text of Python's standard library.",
        {
            "source": string(
                "A path, a glob such as /data/*.txt, an fsspec URL such as s3://bucket/*.parquet, or a hub id.",
                4096,
                least=1,
            ),
            "format": string(
                "The format of the files; text has one column, text. Default: by the extension.", among=FORMATS
            ),
            "name": string("The configuration of a hub dataset. Default: its only one.", 255, least=1),
            "revision": string(
                "Branch, tag or commit of a hub dataset. Default: main.", 255, least=1, pattern=formats.NO_SPACE
            ),
            "split": string("The split to train on; slices such as train[:90%] work. Default: train.", 255, least=1),
            "evalSource": string(
                "The data to evaluate on, like source. Default: source, with evalSplit.", 4096, least=1
            ),
            "evalSplit": string("The split to evaluate on. Default: none; with evalSource: train.", 255, least=1),
            "validationFraction": number(
                "The fraction of rows held out for evaluation, chosen by the seed. Default: 0.05 if "
                "evalStrategy enables evaluation and neither evalSource nor evalSplit is given, else none.",
                least=0,
                most=1,
                open_ends="least most",
            ),
            "columns": record(
                "The column of each role. Default: by common column names.",
                {role: string(about, 255, least=1) for role, about in ROLES.items()},
            ),
            "blockSize": integer(
                "Language models: pack texts into blocks of this length. Default: the model's maximum, at most 1024.",
                2,
                2**24,
            ),
            "maxLength": integer("Truncate texts to this many tokens. Default: the model's maximum.", 1, 2**24),
            "maxTrainSamples": integer("Train on only this many rows, from the start. Default: all.", 1),
            "maxEvalSamples": integer("Evaluate on only this many rows, from the start. Default: all.", 1),
            "streaming": boolean("Read rows during training, without a copy on disk. Needs maxSteps. Default: false."),
        },
        required={"source": "is missing: give a path, a glob, a URL or a hub id"},
        rules=[
            Rule(
                "!has(self.validationFraction) || !(has(self.evalSource) || has(self.evalSplit))",
                "evalSource or evalSplit already gives the evaluation data; remove one of them",
                lambda data: not ("validationFraction" in data and ("evalSource" in data or "evalSplit" in data)),
                field="validationFraction",
            ),
            Rule(
                "!has(self.validationFraction) || !has(self.streaming) || !self.streaming",
                "a streamed dataset cannot be split; give evalSource or evalSplit",
                lambda data: not ("validationFraction" in data and data.get("streaming")),
                field="validationFraction",
            ),
        ],
    )


def script() -> Schema:
    return record(
        "A Python script, started on every rank as with torchrun. It may use trainwright.Trainer, the Hugging "
        "Face Trainer or plain PyTorch.",
        {
            "inline": string("The source text, at most 64 KiB.", MAX_INLINE_SCRIPT, least=1),
            "configMap": record(
                "A ConfigMap in the job's namespace with the script.",
                {
                    "name": formats.object_name("The ConfigMap's name."),
                    "key": formats.config_key("The key, such as train.py."),
                },
                required=["name", "key"],
            ),
            "path": string("A path in the image or on a mounted volume.", 4096, least=1),
            "args": list_of("Command-line arguments. Default: none.", string("An argument.", 4096), 256),
            "requirements": list_of(
                "Packages for the script, installed before it starts by pip, from the index or the wheels that "
                "PIP_INDEX_URL or PIP_FIND_LINKS in podTemplate.env name. Those of the image keep their version unless "
                "named here. The wheels are kept in the output. Default: none.",
                string("A package, such as scikit-learn>=1.5.", 256, least=1, pattern=formats.REQUIREMENT),
                MAX_REQUIREMENTS,
            ),
            "overlay": boolean(
                "Let the script and its libraries (TRL, sentence-transformers, SetFit) import Trainwright's Trainer in "
                "place of the Trainer of transformers. Default: false."
            ),
        },
        rules=[exactly_one(["inline", "configMap", "path"], "give exactly one of inline, configMap, path")],
    )


def sample() -> Schema:
    return record(
        "Text that the trained model generates at the end, for the log and the output.",
        {
            "prompts": list_of("The prompts.", string("A prompt.", 4096), 32, least=1),
            "maxNewTokens": integer("The maximum number of generated tokens. Default: 128.", 1, 65536),
            "temperature": number(
                "Sampling temperature; 0 always takes the most likely token. Default: 1.", least=0, most=100
            ),
        },
        required={"prompts": "is missing: give at least one prompt"},
    )
