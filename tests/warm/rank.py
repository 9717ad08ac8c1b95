"""A forked rank that uses what training uses: OpenMP, autograd, BLAS, threads of tokenizers and pyarrow, a worker."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import threading

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import tokenizers
import torch
import transformers


def use_torch() -> None:
    assert torch.get_num_threads() == 2
    weight = torch.randn(256, 256, requires_grad=True)
    (torch.randn(256, 256) @ weight).relu().sum().backward()
    assert weight.grad is not None
    np.linalg.svd(np.random.rand(64, 64))


def use_transformers() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=64, n_positions=32)
    model = transformers.GPT2LMHeadModel(config)
    ids = torch.randint(0, 64, (2, 16))
    model(input_ids=ids, labels=ids).loss.backward()


def use_tokenizers() -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    assert len(tokenizer.encode_batch(["a b c d"] * 500)) == 500


def use_arrow() -> None:
    table = pa.table({"x": list(range(20000)), "y": ["a", "b"] * 10000})
    assert pyarrow.compute.sum(table["x"]).as_py() == 199990000
    with tempfile.TemporaryDirectory() as folder:
        pyarrow.parquet.write_table(table, f"{folder}/t.parquet")
        assert len(pyarrow.parquet.read_table(f"{folder}/t.parquet", use_threads=True)) == 20000
    rows = datasets.Dataset(table.slice(0, 100)).map(lambda row: {"z": row["x"] + 1})
    assert rows[99]["z"] == 100


def use_a_worker() -> None:
    loader = torch.utils.data.DataLoader(list(range(8)), batch_size=4, num_workers=1)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def check_process() -> None:
    """What tells a fork from a new process, if it is not set right."""
    assert __name__ == "__main__"
    assert sys.modules["__main__"].__dict__ is globals()
    assert os.getsid(0) == os.getpid()
    assert threading.current_thread() is threading.main_thread()


def main() -> None:
    check_process()
    for use in (use_torch, use_transformers, use_tokenizers, use_arrow, use_a_worker):
        use()
    if os.environ["USES_TRL"] == "1" and importlib.util.find_spec("trl"):
        import trl

        assert trl.SFTConfig


if __name__ == "__main__":
    main()
    sys.stdout.flush()
