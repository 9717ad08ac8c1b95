"""The contract for models, label smoothing, the items of a loss, and the meter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers import Trainer as TheirTrainer
from transformers import TrainingArguments as TheirArguments
from transformers.trainer_pt_utils import LabelSmoother as TheirSmoother

from trainwright.contract import DataError
from trainwright.training import losses


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("items", [None, 7, torch.tensor(9)])
def test_label_smoothing_equals_that_of_transformers(shift, items):
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    labels[0, 2] = labels[2, 4] = -100
    mine = losses.LabelSmoother(0.2)({"logits": logits}, labels, shift, items)
    assert mine.item() == pytest.approx(TheirSmoother(0.2)({"logits": logits}, labels, shift, items).item(), rel=1e-6)


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16))


def llama():
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=11, num_key_value_heads=2, **sizes))


def bert():
    config = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=11)
    return BertForSequenceClassification(config)


def t5():
    return T5ForConditionalGeneration(T5Config(num_layers=1, d_model=8, d_kv=4, d_ff=8, num_heads=2, vocab_size=11))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x, labels=None):
        logits = x * self.weight
        return (logits.mean(), logits) if labels is not None else (logits,)


@pytest.mark.parametrize(("make", "causal"), [(gpt2, True), (llama, True), (bert, False), (t5, False), (Plain, False)])
def test_what_a_model_takes_is_read_as_by_transformers(make, causal, tmp_path):
    """But for what becomes of the count of targets: see test_normalisation."""
    model = make()
    reference = TheirTrainer(model, TheirArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"))
    assert losses.find_labels(model) == reference.label_names
    assert losses.can_return_loss(model) is reference.can_return_loss
    assert losses.is_causal_lm(model) is causal


def test_items_are_the_labels_that_are_targets():
    labels = torch.tensor([[1, 2, -100], [3, -100, -100]])
    assert losses.count_items([{"labels": labels}, {"labels": labels}], shifted=False) == 6
    assert losses.count_items([{"labels": labels}], shifted=True) == 1
    assert losses.count_items([{"labels": labels, "shift_labels": labels[:, :1]}], shifted=True) == 2
    assert losses.count_items([{"x": labels}], shifted=False) is None
    assert losses.count_items([{"labels": [{"boxes": 1}]}], shifted=False) is None
    assert losses.count_items([(labels, labels)], shifted=False) is None
    assert losses.count_items([], shifted=False) is None


def test_meter_sums_and_starts_anew():
    meter = losses.LossMeter(filter_nan=True)
    meter.add([torch.tensor(1.0), torch.tensor(2.0)])
    meter.add([torch.tensor(3.0)])
    assert meter.read() == 6.0
    assert meter.read() == 0.0


@pytest.mark.parametrize("values", [[4.0, 2.0, math.nan, 1.0, math.inf], [math.nan, 3.0], [-math.inf, 5.0, 5.5]])
def test_meter_lets_the_mean_of_the_other_steps_stand_in_for_nan(values):
    meter = losses.LossMeter(filter_nan=True)
    for value in values:
        meter.add([torch.tensor(1.0), torch.tensor(value)])
    finite = [1.0 + value for value in values if math.isfinite(value)]
    assert meter.read() / len(values) == pytest.approx(sum(finite) / len(finite))
    assert meter.first_not_finite == next(i for i, value in enumerate(values) if not math.isfinite(value))
    meter.add([torch.tensor(1.0)])
    assert (meter.read(), meter.first_not_finite) == (1.0, None)


@pytest.mark.parametrize("filter_nan", [True, False])
def test_meter_of_nothing_but_nan_never_reads_0(filter_nan):
    meter = losses.LossMeter(filter_nan)
    for _ in range(losses.LossMeter.CHUNK + 2):
        meter.add([torch.tensor(math.nan)])
    assert math.isnan(meter.read())
    assert meter.first_not_finite == 0


def test_meter_without_the_filter_shows_nan():
    meter = losses.LossMeter(filter_nan=False)
    meter.add([torch.tensor(1.0)])
    meter.add([torch.tensor(math.nan)])
    assert math.isnan(meter.read())


def test_meter_sums_up_what_is_rarely_read():
    meter = losses.LossMeter(filter_nan=True)
    for _ in range(losses.LossMeter.CHUNK + 5):
        meter.add([torch.tensor(1.0)])
    assert len(meter._kept) == 5
    assert meter.read() == losses.LossMeter.CHUNK + 5


def on_meta():
    with torch.device("meta"):
        return Plain()


def frozen():
    return Plain().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "label_names", "message"),
    [
        (Plain, ["label"], "label_names: Plain.forward must not call an argument 'label'; call it 'labels'"),
        (on_meta, [], "parameter weight is on the meta device"),
        (frozen, [], "no parameter of Plain requires a gradient"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(make, label_names, message):
    with pytest.raises(losses.ModelError, match=message):
        losses.check_trainable(make(), label_names)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "a batch must be a mapping of argument names to tensors, got list"),
        ({}, "the batch is empty"),
        ({"x": 1, "y": 2}, "Plain.forward takes x, labels, not y; rename the column"),
        ({"labels": 1}, "Plain.forward needs x, and the batch has labels"),
    ],
)
def test_a_batch_that_forward_cannot_take_is_refused(batch, message):
    with pytest.raises(DataError, match=message):
        losses.check_batch(Plain(), batch)


WEIGHT = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"logits": 1}, "no loss among logits, given a batch of x; give it labels and return 'loss'"),
        ((), "forward returned tuple"),
        (None, "forward returned NoneType; return a tuple with the loss first"),
        ((0.5,), "the loss is float, not a tensor; the batch has no labels"),
        ((WEIGHT * 2,), r"the loss must be one number, got a tensor of shape \(3,\); reduce it by its mean"),
        ((torch.tensor(1.0),), "the loss has no gradient"),
    ],
)
def test_a_model_that_returns_no_loss_is_refused(outputs, message):
    with pytest.raises(losses.ModelError, match=message):
        losses.check_loss(losses.loss_of(outputs, {"x": 1}), Plain(), {"x": 1}, ["labels"])


def test_a_model_of_nan_is_refused():
    model = Plain()
    nn.init.constant_(model.weight, math.nan)
    with pytest.raises(losses.ModelError, match="parameter weight holds NaN or infinity before the first step"):
        losses.check_loss(model(torch.ones(2), 1)[0], model, {}, [])


def test_a_first_loss_of_nan_alone_is_told(caplog):
    model = Plain()
    losses.check_loss(model(torch.tensor([math.nan]), 1)[0], model, {}, [])
    assert "the first loss is not a finite number" in caplog.text
