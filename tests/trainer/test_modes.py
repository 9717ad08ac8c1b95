"""Every part of a model trains at every step, and is judged in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer import tiny
from trainer.runs import make
from trainwright import TrainerCallback
from trainwright.training.modes import TrainingMode


class Holder(nn.Module):
    """A new module around parts that are in evaluation mode, as ``from_pretrained`` returns them."""

    def __init__(self):
        super().__init__()
        self.inner = tiny.classifier().eval()
        self.seen = []

    def forward(self, x, labels=None):
        self.seen.append((torch.is_grad_enabled(), {part.training for part in self.modules()}))
        return self.inner(x, labels)


class Meddler(TrainerCallback):
    """Puts a part into evaluation mode, and forgets about it."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.inner.dropout.eval()


@pytest.mark.parametrize("callbacks", [[], [Meddler]])
def test_all_parts_are_in_the_mode_of_what_is_done(callbacks, tmp_path):
    model = Holder()
    make(tmp_path, model, trainer={"callbacks": callbacks}, max_steps=3, eval_strategy="steps", eval_steps=2).train()
    assert [modes for trains, modes in model.seen if trains] == [{True}] * 3
    assert {frozenset(modes) for trains, modes in model.seen if not trains} == {frozenset([False])}


def test_an_adapter_of_a_pretrained_model_has_its_dropout(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny.bert().eval(), LoraConfig(target_modules=["query"], lora_dropout=0.5))
    make(tmp_path, model, tiny.sentences(), max_steps=1).train()
    assert all(part.training for part in model.modules())


def test_a_frozen_norm_of_the_users_own_stays_in_evaluation_mode():
    class Frozen(tiny.Classifier):
        entered = 0

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            self.entered += 1
            return self

    model, enter = Frozen(), TrainingMode()
    for _ in range(3):
        enter(model)
    assert [model.norm.training, model.hidden.training, model.entered] == [False, True, 1]
