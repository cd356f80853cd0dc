"""Bars against repeated n-grams, against transformers'."""

import numpy as np
import pytest
import torch
from transformers import EncoderNoRepeatNGramLogitsProcessor, NoRepeatNGramLogitsProcessor

from drl.runtime.processors.ngrams import EncoderNoRepeatNGram, NoRepeatNGram
from tests.runtime.processors.states import Row, assert_same_over_many, make_state


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("alphabet", [2, 3, 12])
def test_repeated_ngrams_are_barred_as_in_transformers(size: int, alphabet: int) -> None:
    assert_same_over_many(
        NoRepeatNGram(size),
        lambda row: NoRepeatNGramLogitsProcessor(size),
        alphabet=2 if size == 4 else alphabet,
        longest=30,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("alphabet", [2, 3, 12])
def test_ngrams_of_the_source_are_barred_as_in_transformers(size: int, alphabet: int) -> None:
    assert_same_over_many(
        EncoderNoRepeatNGram(size),
        lambda row: EncoderNoRepeatNGramLogitsProcessor(size, torch.tensor([row.source])),
        alphabet=2 if size == 4 else alphabet,
        longest=30,
    )


def barred(processor: NoRepeatNGram | EncoderNoRepeatNGram, row: Row) -> list[int]:
    found = processor(make_state([row], spare=3), np.zeros((1, 10), np.float32))
    return np.flatnonzero(np.isneginf(found[0])).tolist()


def test_the_start_token_and_the_prefix_belong_to_the_row() -> None:
    assert barred(NoRepeatNGram(2), Row([7, 3, 7], prompt=3)) == [3]
    assert barred(NoRepeatNGram(1), Row([7], prompt=1)) == [7]


@pytest.mark.parametrize("size", [4, 5, 1000, 2**62])
def test_ngrams_longer_than_the_row_bar_nothing(size: int) -> None:
    assert barred(NoRepeatNGram(size), Row([1, 1, 1])) == []
    assert barred(EncoderNoRepeatNGram(size), Row([1, 1], source=(1, 1, 1))) == []


def test_a_row_shorter_than_the_beginning_of_an_ngram_bars_nothing() -> None:
    # Padding that stands before a short row's tokens must not pass for tokens.
    rows = [Row([1, 2, 3, 4], source=(3, 4, 5)), Row([4], source=(3, 4, 5))]
    found = EncoderNoRepeatNGram(3)(make_state(rows), np.zeros((2, 6), np.float32))
    assert np.argwhere(np.isneginf(found)).tolist() == [[0, 5]]


def test_tokens_outside_the_vocabulary_are_ignored() -> None:
    assert barred(NoRepeatNGram(1), Row([50, 3])) == [3]
    assert barred(EncoderNoRepeatNGram(1), Row([0], source=(50, 3))) == [3]
