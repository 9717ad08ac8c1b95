"""Packing loses no token, keeps the order, and ends documents where they end."""

from __future__ import annotations

import numpy as np
import pytest

from trainwright.declarative.features import DocumentEncoder, Packer
from trainwright.declarative.tokenizers import byte_tokenizer

BOS, EOS, FIRST_BYTE = 1, 2, 4


def byte_ids(text: str) -> list[int]:
    return [byte + FIRST_BYTE for byte in text.encode()]


@pytest.mark.parametrize("block_size", [1, 3, 7, 64])
def test_blocks_are_the_concatenation_cut_at_every_block(block_size: int) -> None:
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 1000, size=length).tolist() for length in (0, 5, 1, 40, 13, 0, 2)]
    pack = Packer(block_size)
    blocks = np.concatenate([pack(documents[:2]), pack(documents[2:3]), pack([]), pack(documents[3:])])
    everything = [token for document in documents for token in document]
    assert blocks.ravel().tolist() == everything[: len(everything) // block_size * block_size]
    assert blocks.shape[1] == block_size
    assert pack.rest.tolist() == everything[blocks.size :]


def test_without_carry_each_batch_stands_alone() -> None:
    pack = Packer(4, carry=False)
    assert pack([[1, 2, 3, 4, 5]]).tolist() == pack([[1, 2, 3, 4, 5]]).tolist() == [[1, 2, 3, 4]]


def test_pieces_of_a_document_join_and_eos_ends_it() -> None:
    encode = DocumentEncoder(byte_tokenizer(), "text")
    batch = {"text": ["ab", "c", "d"], "first": [True, False, True], "last": [False, True, True]}
    assert encode(batch) == [byte_ids("ab"), [*byte_ids("c"), EOS], [*byte_ids("d"), EOS]]


def test_rows_are_documents_without_marks() -> None:
    encode = DocumentEncoder(byte_tokenizer(), "text", max_length=3)
    assert encode({"text": ["a", "long", None]}) == [[*byte_ids("a"), EOS], byte_ids("lon"), [EOS]]


def test_special_tokens_stand_around_a_document_not_around_its_pieces() -> None:
    encode = DocumentEncoder(byte_tokenizer("both"), "text")
    batch = {"text": ["a", "b"], "first": [True, False], "last": [False, True]}
    assert encode(batch) == [[BOS, *byte_ids("a")], [*byte_ids("b"), EOS]]


def test_an_end_that_the_tokenizer_adds_is_not_added_twice() -> None:
    encode = DocumentEncoder(byte_tokenizer("end"), "text")
    assert encode({"text": ["a"]}) == [[*byte_ids("a"), EOS]]
