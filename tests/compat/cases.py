"""What is trained with each library: a case makes a trainer from the folder of models and the arguments all share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compat import tiny

CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """``make(models, arguments)`` gives a trainer; those that are ``short`` belong to ``make test``.

    Attributes:
        by_hand: Where transformers' figures are wrong: the loss of the first step, from the model alone.
    """

    make: Callable[[Path, dict[str, Any]], Any]
    short: bool = False
    by_hand: Callable[[Path, dict[str, Any]], float] | None = None


def case(name: str, **options: Any) -> Callable[[Any], Any]:
    def keep(make: Any) -> Any:
        CASES[name] = Case(make, **options)
        return make

    return keep


# -- transformers


def _classifier(models: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        models / "encoder", num_labels=2, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0
    )


def _tokenized(models: Path) -> Any:
    words, rows = tiny.tokenizer(), tiny.labelled()
    return rows.map(lambda row: {**words(row["text"]), "labels": row["label"]}, remove_columns=rows.column_names)


def _first_loss(models: Path, arguments: dict[str, Any]) -> float:
    """The mean over all samples of the first step, whose batches are of one size."""
    import torch
    import transformers

    transformers.set_seed(arguments["seed"])
    trainer = classifier(models, {**arguments, "gradient_accumulation_steps": 1})
    trainer.model.eval()
    batches = itertools.islice(trainer.get_train_dataloader(), 2)
    with torch.no_grad():
        return float(torch.stack([trainer.model(**batch).loss for batch in batches]).mean())


@case("transformers, a classifier whose batches are accumulated", by_hand=_first_loss)
def classifier(models: Path, arguments: dict[str, Any]) -> Any:
    """Their loss counts every accumulated batch as if it were all (transformers#47688)."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    class Mine(Trainer):
        pass

    set_seed(arguments["seed"])
    rows, args = _tokenized(models), TrainingArguments(**{"gradient_accumulation_steps": 2, **arguments})
    return Mine(_classifier(models), args, DataCollatorWithPadding(tiny.tokenizer()), rows, rows.select(range(8)))


# -- TRL


def _causal(models: Path) -> dict[str, Any]:
    return {"model": str(models / "causal")}


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])


@case("TRL SFT, packed")
def sft_packed(models: Path, arguments: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(**arguments, packing=True, max_length=32, eval_packing=True)
    return SFTTrainer(**_causal(models), args=args, train_dataset=tiny.texts(64), eval_dataset=tiny.texts(12))


@case("TRL SFT, completions alone, LoRA", short=True)
def sft_completions(models: Path, arguments: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(**arguments, completion_only_loss=True, gradient_accumulation_steps=2)
    rows = tiny.completions(48)
    return SFTTrainer(
        **_causal(models), args=args, train_dataset=rows, eval_dataset=rows.select(range(8)), peft_config=_lora()
    )


@case("TRL SFT, chat, assistant alone")
def sft_chat(models: Path, arguments: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(**arguments, assistant_only_loss=True)
    rows = tiny.conversations()
    return SFTTrainer(**_causal(models), args=args, train_dataset=rows, eval_dataset=rows.select(range(8)))


@case("TRL DPO")
def dpo(models: Path, arguments: dict[str, Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    rows = tiny.preferences()
    args = DPOConfig(**arguments)
    return DPOTrainer(**_causal(models), args=args, train_dataset=rows, eval_dataset=rows.select(range(8)))


@case("TRL DPO, LoRA")
def dpo_lora(models: Path, arguments: dict[str, Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    rows, args = tiny.preferences(), DPOConfig(**arguments, gradient_accumulation_steps=2)
    return DPOTrainer(
        **_causal(models), args=args, train_dataset=rows, eval_dataset=rows.select(range(8)), peft_config=_lora()
    )


@case("TRL Reward")
def reward(models: Path, arguments: dict[str, Any]) -> Any:
    from trl import RewardConfig, RewardTrainer

    rows, args = tiny.preferences(), RewardConfig(**arguments)
    return RewardTrainer(
        model=str(models / "reward"), args=args, train_dataset=rows, eval_dataset=rows.select(range(8))
    )


@case("TRL KTO")
def kto(models: Path, arguments: dict[str, Any]) -> Any:
    from trl import KTOConfig, KTOTrainer

    rows, args = tiny.judged(), KTOConfig(**arguments)
    return KTOTrainer(**_causal(models), args=args, train_dataset=rows, eval_dataset=rows.select(range(8)))


@case("TRL GRPO")
def grpo(models: Path, arguments: dict[str, Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    def vowels(completions: list[str], **kwargs: Any) -> list[float]:
        return [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in completions]

    rows = tiny.completions().remove_columns("completion")
    args = GRPOConfig(**arguments, num_generations=2, max_completion_length=8)
    return GRPOTrainer(
        **_causal(models), args=args, train_dataset=rows, eval_dataset=rows.select(range(8)), reward_funcs=vowels
    )


# -- sentence-transformers


def _encoder(models: Path) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as parts

    return SentenceTransformer(modules=[parts.Transformer(str(models / "encoder")), parts.Pooling(16)], device="cpu")


@case("sentence-transformers, two sets, evaluators", short=True)
def two_sets(models: Path, arguments: dict[str, Any]) -> Any:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments, losses
    from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator, SequentialEvaluator

    model, scored = _encoder(models), tiny.scored()
    judges = [
        EmbeddingSimilarityEvaluator(scored["sentence1"], scored["sentence2"], scored["score"], name=name)
        for name in ("first", "second")
    ]
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**arguments, multi_dataset_batch_sampler="round_robin"),
        train_dataset={"pairs": tiny.pairs(), "scores": scored},
        eval_dataset={"pairs": tiny.pairs(8), "scores": tiny.scored(8)},
        loss={"pairs": losses.MultipleNegativesRankingLoss(model), "scores": losses.CosineSimilarityLoss(model)},
        evaluator=SequentialEvaluator(judges),
    )


@case("sentence-transformers, CrossEncoder")
def cross_encoder(models: Path, arguments: dict[str, Any]) -> Any:
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderCorrelationEvaluator
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    model, scored = CrossEncoder(str(models / "cross"), num_labels=1, device="cpu"), tiny.scored()
    pairs = list(zip(scored["sentence1"], scored["sentence2"], strict=True))
    judge = CrossEncoderCorrelationEvaluator(pairs, scored["score"])
    return CrossEncoderTrainer(
        model=model, args=CrossEncoderTrainingArguments(**arguments), train_dataset=scored,
        eval_dataset=scored.select(range(8)), loss=BinaryCrossEntropyLoss(model), evaluator=judge,
    )  # fmt: skip


# -- SetFit


KNOWN_TO_SETFIT = (
    "output_dir", "max_steps", "save_steps", "logging_steps", "report_to", "eval_strategy", "eval_steps",
    "save_strategy", "seed",
)  # fmt: skip


@case("SetFit")
def setfit(models: Path, arguments: dict[str, Any]) -> Any:
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    rows = tiny.labelled()
    model = SetFitModel(model_body=_encoder(models), model_head=LogisticRegression())
    args = TrainingArguments(
        batch_size=4, logging_strategy="steps", **{name: arguments[name] for name in KNOWN_TO_SETFIT}
    )
    return Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows.select(range(8)), metric=_share_right)


def _share_right(predicted: Any, wanted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted == wanted).mean()) if len(wanted) else 0.0}
