"""A small T5 finds the line that sums up the documentation of a function of the standard library.

python examples/scripts/summarisation.py [--trainer transformers] [--output-dir runs/summaries]
"""

import numpy as np
from datasets import Dataset
from transformers import T5Config, T5ForConditionalGeneration

from local import command_line, documented, finish, library, tokenizer_for

LONGEST_TEXT, LONGEST_SUMMARY = 64, 16


def featurize(tokenizer):
    def encode(batch):
        encoded = tokenizer(batch["text"], truncation=True, max_length=LONGEST_TEXT)
        targets = tokenizer(text_target=batch["summary"], truncation=True, max_length=LONGEST_SUMMARY)
        return {**encoded, "labels": targets["input_ids"]}

    return encode


def likeness(tokenizer):
    """How many words of the summaries that were asked for are in those that were written."""

    def judge(prediction):
        tokens, labels = (np.where(ids < 0, tokenizer.pad_token_id, ids) for ids in prediction)
        written = [set(text.split()) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        wanted = [set(text.split()) for text in tokenizer.batch_decode(labels, skip_special_tokens=True)]
        found = [len(a & b) / max(len(b), 1) for a, b in zip(written, wanted, strict=True)]
        return {"found": float(np.mean(found)), "gen_len": float((tokens != tokenizer.pad_token_id).sum(-1).mean())}

    return judge


def main(trainer_of, output):
    lib = library(trainer_of)
    lib.set_seed(42)
    pairs = documented(240)
    data = Dataset.from_dict({"text": [text for text, _ in pairs], "summary": [summary for _, summary in pairs]})
    tokenizer = tokenizer_for([*data["text"], *data["summary"]], framed="$A </s>")
    data = data.map(featurize(tokenizer), batched=True, remove_columns=["text", "summary"])
    data = data.train_test_split(test_size=40, seed=42)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    args = lib.Seq2SeqTrainingArguments(
        output_dir=str(output), num_train_epochs=2, per_device_train_batch_size=10, per_device_eval_batch_size=20,
        learning_rate=5e-3, logging_steps=4, eval_strategy="epoch", save_strategy="epoch", predict_with_generate=True,
        generation_max_length=LONGEST_SUMMARY + 4, generation_num_beams=2, seed=42, use_cpu=True, report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = lib.Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        data_collator=lib.DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_metrics=likeness(tokenizer),
    )
    return finish(trainer, trainer.train())


if __name__ == "__main__":
    main(*command_line(__doc__))
