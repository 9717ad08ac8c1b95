"""A small BERT tags the words of Python code as keyword, name, number, text or operator.

python examples/scripts/token_classification.py [--trainer transformers] [--output-dir runs/tags]
"""

import io
import keyword
import tokenize

from datasets import Dataset
from transformers import BertConfig, BertForTokenClassification

from local import command_line, finish, library, sources, tokenizer_for

TAGS = ["keyword", "name", "number", "text", "operator"]
KINDS = {tokenize.NAME: "name", tokenize.NUMBER: "number", tokenize.STRING: "text", tokenize.OP: "operator"}


def lines(count):
    """The words of a line of code, and a tag for each."""
    words, tags = [], []
    for text in sources(8):
        by_line = {}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in KINDS:
                kind = "keyword" if keyword.iskeyword(token.string) else KINDS[token.type]
                by_line.setdefault(token.start[0], []).append((token.string[:20], TAGS.index(kind)))
        for line in by_line.values():
            if 4 <= len(line) <= 24:
                words.append([word for word, _ in line])
                tags.append([tag for _, tag in line])
    return Dataset.from_dict({"words": words[:count], "tags": tags[:count]})


def featurize(tokenizer):
    def encode(batch):
        encoded = tokenizer(batch["words"], is_split_into_words=True, truncation=True, max_length=64)
        encoded["labels"] = []
        for row, tags in enumerate(batch["tags"]):
            places = encoded.word_ids(row)
            starts = [place is not None and place != before for before, place in zip([None, *places], places)]  # noqa: B905
            encoded["labels"].append([tags[p] if start else -100 for p, start in zip(places, starts, strict=True)])
        return encoded

    return encode


def token_accuracy(prediction):
    counted = prediction.label_ids != -100
    right = prediction.predictions[counted] == prediction.label_ids[counted]
    return {"accuracy": float(right.mean())}


def main(trainer_of, output):
    lib = library(trainer_of)
    lib.set_seed(42)
    data = lines(400)
    tokenizer = tokenizer_for([" ".join(words) for words in data["words"]])
    data = data.map(featurize(tokenizer), batched=True).train_test_split(test_size=0.25, seed=42)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        num_labels=len(TAGS), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=80,
    )  # fmt: skip
    args = lib.TrainingArguments(
        output_dir=str(output), num_train_epochs=2, per_device_train_batch_size=12, learning_rate=2e-3,
        train_sampling_strategy="group_by_length", label_smoothing_factor=0.1, logging_steps=5, eval_strategy="epoch",
        save_strategy="no", seed=42, use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = lib.Trainer(
        model=BertForTokenClassification(config),
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        data_collator=lib.DataCollatorForTokenClassification(tokenizer),
        compute_metrics=token_accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
    )
    return finish(trainer, trainer.train())


if __name__ == "__main__":
    main(*command_line(__doc__))
