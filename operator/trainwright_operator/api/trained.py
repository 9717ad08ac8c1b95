"""What is trained, of ``spec``: model, dataset and task, or the user's own script; and the sample at the end."""

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

ROLES = {
    "text": "The text.",
    "textPair": "The second text of a pair.",
    "label": "The class of a text.",
    "source": "The text to translate or to sum up.",
    "target": "The text to give for it.",
    "tokens": "The words of a sentence.",
    "tags": "The tag of each word.",
}


def model() -> Schema:
    return record(
        "The model, of the Transformers library: saved weights, or fresh ones from a configuration.",
        {
            "source": string(
                "A hub id, a folder in the pod, or, with fromConfig, a model type such as gpt2: no download.",
                1024,
                least=1,
                pattern=formats.NO_SPACE,
            ),
            "revision": string(
                "Branch, tag or commit of a hub id. Default: main.", 255, least=1, pattern=formats.NO_SPACE
            ),
            "fromConfig": free_map(
                "Train from fresh weights: changes to the configuration of source, under the names of its config.json "
                "(n_layer, hidden_size, ...). Present, even empty, it means that no weights are loaded."
            ),
            "tokenizer": string(
                "Hub id or folder of the tokenizer; bytes is one token for each byte, without a file. Default: source.",
                1024,
                least=1,
                pattern=formats.NO_SPACE,
            ),
            "trustRemoteCode": boolean("Run the Python code that the model's repository brings. Default: false."),
            "dtype": string(
                "Type of the loaded weights. Default: float32; mixed precision is bf16 or fp16 of trainingArguments.",
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
                "What the files hold; text gives a column text. Default: by the extension.", among=FORMATS
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
                "The share of rows held out of training, chosen by the seed, to evaluate on. Default: 0.05 when "
                "evalStrategy asks for evaluation and neither evalSource nor evalSplit is given, else none.",
                least=0,
                most=1,
                open_ends="least most",
            ),
            "columns": record(
                "Which column plays which role. Default: by the columns' usual names.",
                {role: string(about, 255, least=1) for role, about in ROLES.items()},
            ),
            "blockSize": integer(
                "Language models: pack texts into blocks of so many tokens. Default: what it can read, at most 1024.",
                2,
                2**24,
            ),
            "maxLength": integer("Longer texts are cut to so many tokens. Default: what the model can read.", 1, 2**24),
            "maxTrainSamples": integer("Train on the first so many rows. Default: all.", 1),
            "maxEvalSamples": integer("Evaluate on the first so many rows. Default: all.", 1),
            "streaming": boolean("Read rows while training, without a copy on disk. Needs maxSteps. Default: false."),
        },
        required={"source": "is missing: give a path, a glob, a URL or a hub id"},
        rules=[
            Rule(
                "!has(self.validationFraction) || !(has(self.evalSource) || has(self.evalSplit))",
                "evalSource or evalSplit gives the data to evaluate on already; remove one of them",
                lambda it: not ("validationFraction" in it and ("evalSource" in it or "evalSplit" in it)),
                field="validationFraction",
            ),
            Rule(
                "!has(self.validationFraction) || !has(self.streaming) || !self.streaming",
                "a streamed dataset cannot be divided; give evalSource or evalSplit",
                lambda it: not ("validationFraction" in it and it.get("streaming")),
                field="validationFraction",
            ),
        ],
    )


def script() -> Schema:
    return record(
        "Your own Python file, started on every rank as torchrun would. It may use trainwright.Trainer, the Hugging "
        "Face Trainer or plain PyTorch.",
        {
            "inline": string("The program itself, at most 64 KiB.", MAX_INLINE_SCRIPT, least=1),
            "configMap": record(
                "A ConfigMap in the job's namespace that holds it.",
                {
                    "name": formats.object_name("The ConfigMap's name."),
                    "key": formats.config_key("The key, such as train.py."),
                },
                required=["name", "key"],
            ),
            "path": string("A path in the image or on a mounted volume.", 4096, least=1),
            "args": list_of("Arguments of its command line. Default: none.", string("An argument.", 4096), 256),
            "overlay": boolean(
                "Put Trainwright's Trainer under whatever the script and its libraries (TRL, sentence-transformers, "
                "SetFit) import as the Trainer of transformers. Default: false."
            ),
        },
        rules=[exactly_one(["inline", "configMap", "path"], "give exactly one of inline, configMap, path")],
    )


def sample() -> Schema:
    return record(
        "Text that the trained model writes at the end, into the log and the output.",
        {
            "prompts": list_of("What it goes on from.", string("A prompt.", 4096), 32, least=1),
            "maxNewTokens": integer("How many tokens it writes at most. Default: 128.", 1, 65536),
            "temperature": number(
                "How daring it is; 0 takes the likeliest token each time. Default: 1.", least=0, most=100
            ),
        },
        required={"prompts": "is missing: give at least one prompt"},
    )
