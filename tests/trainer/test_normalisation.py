"""What a model divides its loss by is found out: a global batch has one loss, however it is cut into micro-batches."""

from __future__ import annotations

import contextlib
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from trainer import tiny
from trainer.runs import logged, make, quiet, trained
from trainwright import Trainer
from trainwright.training import normalisation
from trainwright.training.normalisation import Normalisation
from trainwright.training.undisturbed import undisturbed

SIZES = {
    "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def gpt2():
    """As transformers makes it: its ``loss_type`` is None."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=16))


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))


def mixtral():
    return MixtralForCausalLM(
        MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2, output_router_logits=True)
    )


def translator():
    """Its labels go into the decoder by no method of the model, and weigh much there."""
    torch.manual_seed(0)
    names = ("d_model", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size", "max_position_embeddings")
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return M2M100ForConditionalGeneration(M2M100Config(**dict.fromkeys(names, 32), **layers, init_std=0.5))


def modern_bert():
    return ModernBertForMaskedLM(ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2))


def lora():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(tiny.masked_bert(), LoraConfig(target_modules=["query"]))


class Holder(nn.Module):
    """A user's own module around a model of transformers."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, labels=None, **more):
        return self.inner(input_ids=input_ids, labels=labels, **more)


class Pixels(nn.Module):
    """A sum over the greater half of the classes, divided by the count: nothing that labels of -100 would tell."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, labels, num_items_in_batch=None, **other):
        total, own = (self.scale * labels[labels > 12]).sum(), (labels > 12).sum()
        return (total / (own if num_items_in_batch is None else num_items_in_batch),)


class Restless(Holder):
    """Draws from every generator, counts its calls in an attribute, a buffer, a list and its configuration."""

    def __init__(self, inner):
        super().__init__(inner)
        self.register_buffer("seen", torch.zeros(1))
        self.calls, self.kept, self.plain, self.config = 0, [], torch.zeros(1), inner.config
        self.norm = nn.BatchNorm1d(3)

    def forward(self, input_ids, labels=None, **more):
        self.norm(torch.randn(4, 3) + random.random() + np.random.rand())
        self.calls += 1
        self.seen += 1
        self.plain += 1
        self.kept.append(self.calls)
        self.config.problem_type = "touched"
        return super().forward(input_ids, labels, **more)


def batch(samples=4, data=tiny.texts):
    rows = data(samples)
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


FOUND = {
    "a causal model without a loss_type": (gpt2, Normalisation.SHIFTED_COUNT),
    "llama": (llama, Normalisation.SHIFTED_COUNT),
    "experts with an auxiliary loss": (mixtral, Normalisation.SHIFTED_COUNT),
    "a masked model that takes the count": (modern_bert, Normalisation.COUNT),
    "a masked model that drops it": (tiny.masked_bert, Normalisation.OWN_TARGETS),
    "an adapter in it": (lora, Normalisation.OWN_TARGETS),
    "a sequence to sequence model that drops it": (tiny.t5, Normalisation.OWN_TARGETS),
    "a causal model in a module": (lambda: Holder(gpt2()), Normalisation.SHIFTED_COUNT),
    "a masked model in a module": (lambda: Holder(tiny.masked_bert()), Normalisation.OWN_TARGETS),
    "a sequence to sequence model in a module": (lambda: Holder(tiny.t5()), Normalisation.OWN_TARGETS),
    "one that makes its decoder's inputs its own way": (translator, Normalisation.OWN_TARGETS),
    "a compiled model": (lambda: torch.compile(gpt2(), backend="eager"), Normalisation.SHIFTED_COUNT),
    "a count of something else": (Pixels, Normalisation.OWN),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_the_loss_is_divided_by_is_found_out(name):
    make_model, expected = FOUND[name]
    model = make_model()
    assert normalisation.agreed(model, [batch()]) is expected
    if name != "a count of something else":
        assert normalisation.read(model).takes_count is expected.takes_count
        assert normalisation.read(model).shifts is expected.shifts or not expected.takes_count


def test_a_single_row_tells_as_much():
    rows = {key: value[:1] for key, value in batch().items()}
    found = {name: normalisation.measure(FOUND[name][0](), rows) for name in FOUND if "experts" not in name}
    assert found == {name: FOUND[name][1] for name in found}


@pytest.mark.parametrize("places", [(1, 2), (4, 7), (3, 6), (3, 5)])
def test_two_targets_of_a_row_are_enough_wherever_they_stand(places):
    rows = batch(samples=2)
    labels = torch.full_like(rows["labels"], -100)
    labels[0, list(places)] = rows["input_ids"][0, list(places)]
    assert normalisation.agreed(tiny.masked_bert(), [{**rows, "labels": labels}]) is Normalisation.OWN_TARGETS


def test_a_classifier_that_drops_the_count_keeps_its_own_mean():
    assert normalisation.agreed(tiny.bert(), [batch(data=tiny.sentences)]) is Normalisation.OWN


def test_without_targets_the_source_tells():
    rows = {**batch(), "labels": torch.full((4, 12), -100)}
    assert normalisation.agreed(gpt2(), [rows]) is Normalisation.SHIFTED_COUNT
    assert normalisation.agreed(tiny.t5(), [rows]) is Normalisation.OWN


def test_finding_out_leaves_no_trace():
    model = Restless(tiny.masked_bert()).train()
    model.inner.bert.eval()
    hooked = []
    model.inner.register_forward_hook(lambda *_: hooked.append("own"))
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: hooked.append("of all"))
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    assert normalisation.measure(model, batch()) is Normalisation.OWN_TARGETS
    handle.remove()
    assert (torch.rand(1), random.random(), np.random.rand()) == before
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (model.calls, model.kept, model.plain.item(), model.config.problem_type) == (0, [], 0, None)
    assert hooked == []
    model(**batch())
    assert hooked == ["own"]


def test_an_error_leaves_no_trace_either():
    model = Restless(tiny.masked_bert()).train()
    with contextlib.suppress(RuntimeError), undisturbed(model):
        model(**batch())
        raise RuntimeError
    assert (model.calls, model.training, model.seen.item()) == (0, True, 0)


RAGGED = {
    "gpt2": (gpt2, tiny.texts),
    "masked bert": (tiny.masked_bert, tiny.texts),
    "t5": (tiny.t5, tiny.texts),
    "bert": (tiny.bert, tiny.sentences),
    "causal in a module": (lambda: Holder(gpt2()), tiny.texts),
    "masked in a module": (lambda: Holder(tiny.masked_bert()), tiny.texts),
}


@pytest.mark.parametrize("name", RAGGED)
def test_a_global_batch_has_one_loss_however_it_is_cut(name, tmp_path):
    """The targets of its samples differ in number; the loss and the gradient are the model's own over all of them."""
    make_model, data = RAGGED[name]
    rows = data(8)
    model = quiet(make_model())
    loss = model(**batch(8, data))[0] if isinstance(model, Holder) else model(**batch(8, data)).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    for size, accumulated in ((8, 1), (2, 4), (1, 8)):
        trainer = trained(
            tmp_path, quiet(make_model()), rows, max_steps=1, per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated, train_sampling_strategy="sequential", max_grad_norm=0.0,
        )  # fmt: skip
        assert logged(trainer, "loss") == pytest.approx([loss.item()], rel=1e-5)
        assert logged(trainer, "grad_norm") == pytest.approx([norm.item()], rel=1e-4)


def test_an_untrained_model_starts_at_the_logarithm_of_its_vocabulary(tmp_path):
    for make_model in (gpt2, tiny.masked_bert):
        trainer = trained(
            tmp_path, make_model(), tiny.texts(), max_steps=1, per_device_train_batch_size=1,
            gradient_accumulation_steps=8, trainer={"eval_dataset": tiny.texts(8)},
        )  # fmt: skip
        assert logged(trainer, "loss") == pytest.approx([math.log(32)], abs=0.15)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(32), abs=0.15)


def test_the_evaluated_loss_is_the_models_own(tmp_path):
    """Also before training, when nothing is known of the model."""
    for make_model, data in RAGGED.values():
        model, rows = make_model().eval(), batch(6, data)
        outputs = model(**rows)
        expected = (outputs[0] if isinstance(outputs, tuple) else outputs["loss"]).item()
        trainer = make(tmp_path, model, trainer={"eval_dataset": data(6)}, per_device_eval_batch_size=6)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


class Through(Trainer):
    """Someone who looks at the loss on its way."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_an_override_that_asks_the_trainer_has_the_same_loss(name, tmp_path):
    make_model, data = RAGGED[name]
    options = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "seed": 1}
    one, other = (trained(tmp_path, quiet(make_model()), data(8), kind=kind, **options) for kind in (Trainer, Through))
    for key in ("loss", "grad_norm"):
        assert logged(one, key) == pytest.approx(logged(other, key), rel=1e-5)


def test_the_model_is_not_asked_where_someone_else_computes_the_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(normalisation, "measure", lambda *_: pytest.fail("the model was called"))
    mean = {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs["logits"].mean()}
    trained(tmp_path, tiny.gpt2(), tiny.texts(8), trainer=mean, max_steps=1)
    trained(tmp_path, tiny.gpt2(), tiny.texts(8), kind=Through, max_steps=1)
    trained(tmp_path, tiny.classifier(), max_steps=1)  # its forward has no place for a count


@pytest.mark.parametrize("said", [True, False])
def test_what_someone_says_of_the_model_wins(said, tmp_path, monkeypatch):
    monkeypatch.setattr(normalisation, "measure", lambda *_: pytest.fail("the model was called"))
    trainer = make(tmp_path, tiny.masked_bert(), tiny.texts(8), max_steps=1, gradient_accumulation_steps=2)
    trainer.model_accepts_loss_kwargs = said
    trainer.train()
    assert trainer.model_accepts_loss_kwargs is said
    assert (trainer._get_num_items_in_batch([batch()], "cpu") is not None) is said


@pytest.mark.parametrize("said", [True, False])
def test_what_a_class_says_of_its_models_wins(said, tmp_path, monkeypatch):
    monkeypatch.setattr(normalisation, "measure", lambda *_: pytest.fail("the model was called"))
    kind = type("Says", (Trainer,), {"model_accepts_loss_kwargs": said})
    trainer = trained(
        tmp_path, quiet(gpt2()), tiny.texts(8), kind=kind, max_steps=1, per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    assert logged(trainer, "loss") == pytest.approx([math.log(32)], abs=0.15)
    assert (trainer._get_num_items_in_batch([batch()], "cpu") is not None) is said


def test_a_model_that_says_so_is_believed():
    class Says(BertForMaskedLM):
        accepts_loss_kwargs = False

    assert normalisation.declared(Says(tiny.masked_bert().config)) is Normalisation.OWN
    Says.accepts_loss_kwargs = True
    assert normalisation.declared(Says(tiny.masked_bert().config)) is Normalisation.COUNT
