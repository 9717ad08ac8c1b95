"""What scripts import beside the Trainer does what the one of transformers does."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers.trainer_pt_utils
import transformers.trainer_utils

import trainwright
from trainer import tiny
from trainer.world import in_world
from trainwright.compat import nested

NEST = {"a": torch.arange(6.0).reshape(2, 3), "b": [torch.ones(2), (torch.zeros(2, 2, 2),)]}
LONGER = {"a": torch.ones(1, 5), "b": [torch.ones(3), (torch.ones(1, 4, 2),)]}
ARRAYS = transformers.trainer_pt_utils.nested_numpify(NEST)


def theirs(name: str) -> Any:
    for module in (transformers.trainer_pt_utils, transformers.trainer_utils):
        if hasattr(module, name):
            return getattr(module, name)
    raise AssertionError(f"transformers has no {name}")


class Unsized:
    def __iter__(self):
        return iter(())


def two(a, b):
    return a


def norms():
    return torch.nn.ModuleDict({"norm": torch.nn.BatchNorm1d(3), "inner": tiny.classifier()})


CALLS: dict[str, tuple[Any, ...]] = {
    "nested_concat": (NEST, LONGER),
    "nested_concat, padded with zeros": (NEST, LONGER, 0),
    "nested_concat, arrays": (ARRAYS, ARRAYS),
    "nested_concat, nothing alike": (NEST, [torch.ones(1)]),
    "torch_pad_and_concatenate": (torch.tensor(1), torch.ones(2)),
    "numpy_pad_and_concatenate": (np.ones((2, 3, 4)), np.zeros((1, 5, 4))),
    "nested_numpify": ([torch.ones(2, dtype=torch.bfloat16)],),
    "nested_detach": ({"a": torch.ones(2, requires_grad=True), "b": "text"},),
    "nested_truncate": (NEST, 1),
    "nested_new_like": ((np.ones((3, 2)), np.ones(3)), 5),
    "nested_gather": (NEST, trainwright.ParallelMode.NOT_DISTRIBUTED),
    "expand_like": (np.ones((2, 3)), 5),
    "find_batch_size": ([torch.tensor(3), {"a": torch.ones(4, 2)}],),
    "find_batch_size, of nothing": ({"a": "text"},),
    "atleast_1d": (torch.tensor(2),),
    "get_parameter_names": (norms(), [torch.nn.LayerNorm], ["bias", "^weight$"]),
    "get_parameter_names, by type": (norms(), [torch.nn.LayerNorm]),
    "get_model_param_count": (tiny.classifier(),),
    "get_dataloader_sampler": (torch.utils.data.DataLoader([1], sampler=torch.utils.data.SequentialSampler([1])),),
    "denumpify_detensorize": ({"a": np.float32(1), "b": [torch.tensor(2), "text"], "c": np.ones(2)},),
    "has_length": ([1],),
    "has_length, without": (Unsized(),),
    "number_of_arguments": (two,),
    "number_of_arguments, of a partial": (functools.partial(two, b=1),),
    "is_main_process": (-1,),
    "is_main_process, the second": (1,),
    "total_processes_number": (-1,),
    "default_data_collator": (tiny.vectors(3),),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_helper_returns_what_that_of_transformers_returns(case: str) -> None:
    name, given = case.split(",")[0], CALLS[case]
    function = transformers.default_data_collator if name == "default_data_collator" else theirs(name)
    try:
        expected = function(*given)
    except (AssertionError, TypeError):
        with pytest.raises(TypeError, match=f"{name}: a dict and a list do not match"):
            getattr(trainwright, name)(*given)
        return
    result = getattr(trainwright, name)(*given)
    assert type(result) is type(expected)
    if isinstance(expected, dict | list | tuple | torch.Tensor | np.ndarray):
        assert repr(result) == repr(expected)
    else:
        assert result == expected


@pytest.mark.parametrize("concatenates", [True, False])
def test_a_container_of_batches_joins_them_as_that_of_transformers(concatenates: bool) -> None:
    def collected(container: Any) -> Any:
        container.add(NEST)
        container.to_cpu_and_numpy()
        container.add(LONGER)
        container.add(NEST)
        return container.get_arrays()

    expected = collected(transformers.trainer_pt_utils.EvalLoopContainer(concatenates, padding_index=7))
    assert repr(collected(nested.EvalLoopContainer(concatenates, padding_index=7))) == repr(expected)
    assert nested.EvalLoopContainer().get_arrays() is None


def test_samples_are_grouped_by_length_as_by_transformers() -> None:
    samples = [{"input_ids": [0] * (number * 7 % 13 + 1)} for number in range(50)]
    orders = [
        list(kind(4, dataset=samples, generator=torch.Generator().manual_seed(3)))
        for kind in (trainwright.LengthGroupedSampler, transformers.trainer_pt_utils.LengthGroupedSampler)
    ]
    assert orders[0] == orders[1]
    with pytest.raises(ValueError, match="give it the dataset or the lengths"):
        trainwright.LengthGroupedSampler(4)


def test_a_batch_size_that_fits_is_found() -> None:
    def run(batch_size: int) -> int:
        if batch_size > 50:
            raise RuntimeError("CUDA out of memory.")
        return batch_size

    find = trainwright.find_executable_batch_size
    assert find(run, starting_batch_size=64, auto_find_batch_size=True)() == 45  # of 64, nine tenths again and again
    assert find(starting_batch_size=8)(run)() == 8
    with pytest.raises(RuntimeError, match="out of memory"):
        find(run, starting_batch_size=64)()


def two_ranks(_: Any) -> Any:
    rank = torch.distributed.get_rank()
    order = []
    with trainwright.torch_distributed_zero_first(rank):
        order.append(rank)
    rows = trainwright.nested_gather({"a": torch.full((2, 1), rank)}, trainwright.ParallelMode.DISTRIBUTED)
    scalars = trainwright.distributed_broadcast_scalars([rank, 5], device=torch.device("cpu"))
    some = trainwright.distributed_concat(torch.tensor(rank), num_total_examples=1)
    return rows["a"].tolist(), scalars.tolist(), some.tolist(), trainwright.total_processes_number(rank)


def test_collective_helpers_agree_on_two_ranks() -> None:
    assert in_world(2, "trainer.test_helpers:two_ranks") == [([[0], [0], [1], [1]], [0, 5, 1, 5], [0], 2)] * 2


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("trainer_utils", "get_last_checkpoint"),
        ("trainer_utils", "PREFIX_CHECKPOINT_DIR"),
        ("trainer_utils", "IntervalStrategy"),
        ("trainer_pt_utils", "LabelSmoother"),
        ("trainer_pt_utils", "log_metrics"),
        ("trainer_callback", "TrainerCallback"),
        ("training_args", "TrainingArguments"),
        ("training_args_seq2seq", "Seq2SeqTrainingArguments"),
        ("trainer_seq2seq", "Seq2SeqTrainer"),
    ],
)
def test_modules_of_transformers_have_their_names_here(module: str, name: str) -> None:
    here = importlib.import_module(f"trainwright.{module}")
    assert getattr(here, name) is getattr(trainwright, name, getattr(here, name))
    assert hasattr(importlib.import_module(f"transformers.{module}"), name)
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec(f"from trainwright.{module} import Nothing")


def test_collators_of_transformers_are_at_hand() -> None:
    assert trainwright.DataCollatorForSeq2Seq is transformers.DataCollatorForSeq2Seq
