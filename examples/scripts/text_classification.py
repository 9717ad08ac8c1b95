"""A small BERT tells code, comments and documentation of Python's standard library apart.

python examples/scripts/text_classification.py [--trainer transformers] [--output-dir runs/classes]
"""

import numpy as np
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from local import command_line, finish, library, sources, tokenizer_for

LABELS = ["code", "comment", "documentation"]


def rows(count):
    """Lines with their kind, as many of each."""
    kinds = {label: [] for label in LABELS}
    for text in sources(60):
        inside = False
        for line in map(str.strip, text.splitlines()):
            marks = line.count('"""')
            kind = "documentation" if inside or marks else "comment" if line.startswith("#") else "code"
            inside ^= marks == 1
            stripped = line.strip('"# ')
            if len(stripped) > 20:
                kinds[kind].append(stripped)
    each = count // len(LABELS)
    texts = [(kinds[label][number], index) for number in range(each) for index, label in enumerate(LABELS)]
    return Dataset.from_dict({"text": [text for text, _ in texts], "label": [label for _, label in texts]})


def accuracy(prediction):
    guesses = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float((guesses == prediction.label_ids).mean())}


def main(trainer_of, output):
    lib = library(trainer_of)
    lib.set_seed(42)
    data = rows(360)
    tokenizer = tokenizer_for(data["text"], framed="[CLS] $A [SEP]")
    data = data.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=48), batched=True)
    data = data.train_test_split(test_size=0.2, seed=42)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        num_labels=len(LABELS), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64,
    )  # fmt: skip
    args = lib.TrainingArguments(
        output_dir=str(output), num_train_epochs=3, per_device_train_batch_size=16, learning_rate=1e-3,
        weight_decay=0.01, warmup_steps=0.1, logging_steps=3, eval_strategy="epoch", save_strategy="epoch",
        save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="accuracy", seed=42, use_cpu=True,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = lib.Trainer(
        model=BertForSequenceClassification(config),
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    return finish(trainer, trainer.train())


if __name__ == "__main__":
    main(*command_line(__doc__))
