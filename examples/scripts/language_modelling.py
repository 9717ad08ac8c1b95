"""A small GPT-2 learns to write Python from the standard library.

python examples/scripts/language_modelling.py [--trainer transformers] [--output-dir runs/python]
"""

import math
from itertools import chain

from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from local import command_line, finish, library, sources, tokenizer_for

BLOCK = 64


def blocks(texts, tokenizer):
    """Blocks of equal length, whatever module they are of."""
    ids = list(chain.from_iterable([*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts))
    rows = [ids[start : start + BLOCK] for start in range(0, len(ids) - BLOCK + 1, BLOCK)]
    return Dataset.from_dict({"input_ids": rows})


def main(trainer_of, output):
    lib = library(trainer_of)
    lib.set_seed(42)
    texts = [text[:6000] for text in sources(24)]
    tokenizer = tokenizer_for(texts)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=BLOCK, n_embd=64, n_layer=2, n_head=4,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    args = lib.TrainingArguments(
        output_dir=str(output), max_steps=30, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        learning_rate=3e-3, lr_scheduler_type="cosine", logging_steps=2, eval_strategy="steps", eval_steps=10,
        save_steps=20, include_num_input_tokens_seen="all", seed=42, use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # as it computes; unsaid, transformers reports it too low by 1/BLOCK
    trainer = lib.Trainer(
        model=model,
        args=args,
        train_dataset=blocks(texts[:20], tokenizer),
        eval_dataset=blocks(texts[20:], tokenizer),
        processing_class=tokenizer,
        data_collator=lib.DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    history = finish(trainer, trainer.train())
    print(f"perplexity {math.exp(history[-1]['eval_loss']):.1f}")
    return history


if __name__ == "__main__":
    main(*command_line(__doc__))
