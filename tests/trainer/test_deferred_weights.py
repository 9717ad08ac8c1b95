"""Models made without values: filled in they are the models made as usual, and the random generator goes on alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import tiny
from trainer.runs import differing, trained
from trainwright.checkpoint.deferred import deferred_weights, fill, read_from
from trainwright.contract import UserError


def llama(seed: int = 0) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32))


def vit(seed: int = 0) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(seed)
    return ViTForImageClassification(ViTConfig(**sizes, image_size=32))


def experts(seed: int = 0) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(seed)
    return MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=2, vocab_size=32))


class Orthogonal(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(8, 8)
        self.second = nn.Parameter(torch.empty(8, 8, 3))
        nn.init.orthogonal_(self.first.weight)
        nn.init.sparse_(self.first.weight[:4], 0.5)
        nn.init.dirac_(self.second)


MODELS = [tiny.classifier, tiny.gpt2, tiny.bert, tiny.masked_bert, tiny.t5, llama, vit, experts, Orthogonal]


def without_values(make: Any, seed: int = 0) -> nn.Module:
    with deferred_weights():
        return make(seed)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_values_and_generator_are_those_of_the_model_made_whole(make):
    expected, after = make(0), torch.get_rng_state()
    model = without_values(make)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(parameter.is_meta for parameter in model.parameters())
    torch.manual_seed(7)  # what happens in between does not matter
    fill(model)
    assert differing(dict(model.state_dict()), dict(expected.state_dict())) == []
    assert len(list(model.parameters())) == len(list(expected.parameters()))  # tied weights stay tied


def test_the_files_of_a_model_without_head_are_read_into_one_with_a_head(tmp_path: Path) -> None:
    saved = tiny.gpt2(seed=1)
    saved.transformer.save_pretrained(tmp_path)
    model = without_values(tiny.gpt2)
    assert read_from(model, tmp_path) == []
    fill(model)
    assert differing(dict(model.state_dict()), dict(saved.state_dict())) == []


def test_names_that_the_model_does_not_have_are_returned(tmp_path: Path) -> None:
    tiny.bert().save_pretrained(tmp_path)
    assert "classifier.weight" in read_from(without_values(tiny.masked_bert), tmp_path)


class FromAnother(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight.data.copy_(self.first.weight.t())


def test_what_cannot_be_repeated_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot be done shard by shard; make it whole") as caught, deferred_weights():
        FromAnother()
    assert "\n" not in str(caught.value)
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_run_that_does_not_shard_fills_the_model_at_once(tmp_path: Path) -> None:
    ends = [trained(tmp_path, model, max_steps=2) for model in (tiny.classifier(), without_values(tiny.classifier))]
    assert differing(*(dict(trainer.model.state_dict()) for trainer in ends)) == []
