"""What the scripts here share: text from Python's standard library, a tokenizer trained on it, and the command line.

Nothing is downloaded. `--trainer transformers` runs the same script with the Trainer of Hugging Face; `--output-dir`
says where the results go.
"""

import argparse
import ast
import importlib
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "</s>"}


def command_line(description):
    """The library whose Trainer is used, and the output folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--trainer", choices=("trainwright", "transformers"), default="trainwright")
    parser.add_argument("--output-dir", type=Path)
    options = parser.parse_args()
    return options.trainer, options.output_dir or Path("runs") / options.trainer


def library(name):
    """`trainwright` or `transformers`: what a script imports its Trainer from is all that changes."""
    return importlib.import_module(name)


def sources(count):
    """The texts of some modules of the standard library, the same ones in the same order on every machine."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("[a-z]*.py"))[:count]]


def documented(count):
    """(documentation, its first line) of the functions and classes of the standard library that say more than one."""
    pairs = []
    for text in sources(150):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n")
                if first.strip() and rest.strip():
                    pairs.append((f"{rest.strip()} {first}", first.strip()))
    return pairs[:count]


def tokenizer_for(texts, size=600, framed=None):
    """Byte-pair encoding trained on `texts`; `framed` is what stands around a text, such as "[CLS] $A [SEP]"."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(SPECIAL.values())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special))
    if framed is not None:
        ids = [(token, tokenizer.token_to_id(token)) for token in special if token in framed]
        tokenizer.post_processor = processors.TemplateProcessing(single=framed, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def finish(trainer, train_result):
    """What Hugging Face's own scripts end with."""
    trainer.save_model()
    metrics = {**train_result.metrics, "train_samples": len(trainer.train_dataset)}
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return trainer.state.log_history
