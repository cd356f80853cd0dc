"""Random decoding states, and comparison of a processor with transformers' row by row."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor as Oracle

from drl.runtime.processors.protocol import DecodingState, LogitsProcessor

Oracles = Callable[["Row"], Oracle]


@dataclass
class Row:
    """One hypothesis: its tokens, how many of them are prompt, its limit and its source."""

    tokens: list[int]
    prompt: int = 1
    max_length: int = 100
    source: tuple[int, ...] = (1,)


def make_state(rows: list[Row], spare: int = 0) -> DecodingState:
    """The state of some rows, with `spare` columns of padding."""
    tokens = padded([row.tokens for row in rows], spare)
    sources = padded([list(row.source) for row in rows], spare)
    return DecodingState(
        tokens=tokens,
        lengths=np.array([len(row.tokens) for row in rows], np.int64),
        prompt_lengths=np.array([row.prompt for row in rows], np.int64),
        max_lengths=np.array([row.max_length for row in rows], np.int64),
        sources=sources,
        source_lengths=np.array([len(row.source) for row in rows], np.int64),
    )


def padded(lists: list[list[int]], spare: int) -> np.ndarray:
    array = np.full((len(lists), max(map(len, lists)) + spare), -1, np.int64)
    for place, items in enumerate(lists):
        array[place, : len(items)] = items
    return array


def random_rows(random: np.random.Generator, count: int, alphabet: int, longest: int) -> list[Row]:
    """Rows of tokens from a small alphabet, so that they repeat themselves."""
    rows = []
    for _ in range(count):
        length = int(random.integers(1, longest + 1))
        rows.append(
            Row(
                random.integers(0, alphabet, length).tolist(),
                int(random.integers(1, length + 1)),
                length + int(random.integers(1, 4)),
                tuple(random.integers(0, alphabet, random.integers(1, longest + 1)).tolist()),
            )
        )
    return rows


def random_scores(random: np.random.Generator, count: int, vocab_size: int) -> np.ndarray:
    """Scores of both signs, some of them zero or barred."""
    scores = (random.normal(size=(count, vocab_size)) * 5).astype(np.float32)
    scores[random.random(scores.shape) < 0.05] = 0.0
    scores[random.random(scores.shape) < 0.05] = -np.inf
    return scores


def expected_scores(rows: list[Row], scores: np.ndarray, oracle: Oracles) -> np.ndarray:
    """What transformers makes of each row on its own."""
    found = [
        oracle(row)(torch.tensor([row.tokens]), torch.from_numpy(scores[place : place + 1].copy()))
        for place, row in enumerate(rows)
    ]
    return torch.cat(found).numpy()


def assert_same_as(
    oracle: Oracles, processor: LogitsProcessor, rows: list[Row], scores: np.ndarray
) -> int:
    """Compare all rows at once and each alone to the last bit; how many scores were changed."""
    expected = expected_scores(rows, scores, oracle)
    together = processor(make_state(rows, spare=2), scores.copy())
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, expected)
    for place, row in enumerate(rows):
        alone = processor(make_state([row]), scores[place : place + 1].copy())
        assert alone.tobytes() == together[place].tobytes()
    return int((together != scores).sum())


def assert_same_over_many(
    processor: LogitsProcessor,
    oracle: Oracles,
    vocab_size: int = 12,
    alphabet: int = 5,
    longest: int = 14,
) -> None:
    """Compare over batches of random rows; the processor must have had something to do."""
    changed = 0
    for seed in range(15):
        random = np.random.default_rng(seed)
        count = int(random.integers(1, 9))
        rows = random_rows(random, count, alphabet, longest)
        scores = random_scores(random, count, vocab_size)
        changed += assert_same_as(oracle, processor, rows, scores)
    assert changed > 0
