"""The same tokens through a bundle's own backend and through its lowered graphs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drl.runtime.backends import Backend, StepInputs
from drl.runtime.bundle import Bundle
from tests.export.tensorrt.lowered import Array, LoweredModel

CHUNKS = (3, 1, 1, 1, 4, 1)
"""Tokens of each call: a prefill, single-token steps, and a chunk over a filled cache."""


_SAME_BIAS = 0.02


@dataclass
class Differences:
    """How far apart two runs are.

    Attributes:
        states: Encoder states.
        path_logits: Of the path router.
        logits: Logits and normalisers, of the rows that took the same routes so far.
        magnitude: The largest logit.
        flips: Rows that took other routes or kept other states, at any place.
        rows: All rows.
        tokens: Likeliest tokens compared, where the lead is clear.
        wrong: Those of them that differ.
    """

    states: float = 0.0
    path_logits: float = 0.0
    logits: float = 0.0
    magnitude: float = 0.0
    flips: int = 0
    rows: int = 0
    tokens: int = 0
    wrong: int = 0


def compare(
    bundle: Bundle,
    backend: Backend,
    lowered: LoweredModel,
    sources: Sequence[Sequence[int]],
    path: int,
    *,
    width: int = 1,
    lead: float = 0.0,
) -> Differences:
    """Encode, bridge and decode random tokens on both.

    Args:
        bundle: Of the backend.
        backend: The reference.
        lowered: What is held against it.
        sources: Token ids.
        path: Index of the path.
        width: Rows per source.
        lead: From which lead on the likeliest token is clear.
    """
    found = Differences(rows=len(sources) * width)
    lengths = np.array([len(source) for source in sources], np.int32)
    tokens = np.zeros((len(sources), lengths.max()), np.int64)
    for row, source in enumerate(sources):
        tokens[row, : len(source)] = source
    budget = np.full(len(sources), 0.5, np.float32)
    encoding = backend.encode(tokens, lengths, budget, True)
    encoded = lowered.encode(sources)
    valid = np.arange(tokens.shape[1]) < lengths[:, None]
    same = np.ones(len(sources), bool)
    for layer, ids in encoding.experts.items():
        other = encoded[f"encoder_experts.{layer}"]
        same &= ((ids == other).all(axis=2) | ~valid).all(axis=1)
    valid &= same[:, None]
    found.states = _distance(encoding.states, encoded["encoder_states"], valid)
    if encoding.path_logits is not None:
        found.path_logits = _distance(encoding.path_logits, encoded["path_logits"], same)
    cross, other_cross = backend.bridge(encoding, path), lowered.bridge(encoded, path)
    np.testing.assert_array_equal(cross.lengths, other_cross["kept_lengths"])
    cache, rows = bundle.manifest.cache, found.rows
    layers = bundle.manifest.paths[path].layers
    capacity = lowered.capacity
    past = [
        [
            np.zeros((rows, cache.kv_heads, capacity * (i in layers), cache.head_dim), np.float32)
            for i in range(cache.decoder_layers)
        ]
        for _ in "kv"
    ]
    random = np.random.default_rng(path)
    # the same states are kept, where none is so nearly as salient as another
    kept = other_cross["cross_bias"][:, : cross.bias.shape[1]]
    same &= np.abs(cross.bias - kept).max(axis=1) < _SAME_BIAS
    same = np.repeat(same, width)
    done = np.zeros(rows, np.int32)
    decoding = lowered.decoding(other_cross, path, width)
    for size in CHUNKS:
        drawn = random.integers(0, bundle.manifest.limits.vocab_size, (rows, size))
        new = random.integers(1, size + 1, rows).astype(np.int32)
        step = StepInputs(
            path,
            drawn,
            done.copy(),
            new,
            cross.bias,
            cross.keys,
            cross.values,
            tuple(past[0]),
            tuple(past[1]),
            with_experts=True,
        )
        expected, given = backend.step(step), decoding.step(drawn, new)
        real = np.arange(size) < new[:, None]
        for layer, ids in expected.experts.items():
            other = given[f"decoder_experts.{layer}"]
            same &= ((ids == other).all(axis=2) | ~real).all(axis=1)
        _compare_logits(found, expected.logits, expected.normalisers, given, real, same, lead)
        done = done + new
    found.flips = int((~same).sum())
    return found


def _compare_logits(
    found: Differences,
    logits: Array,
    normalisers: Array,
    given: dict[str, Array],
    real: Array,
    same: Array,
    lead: float,
) -> None:
    counted = real & same[:, None]
    found.logits = max(found.logits, _distance(logits, given["logits"], counted))
    found.logits = max(found.logits, _distance(normalisers, given["normalisers"], counted))
    found.magnitude = max(found.magnitude, float(np.abs(logits).max()))
    ranked = np.sort(logits, axis=-1)
    clear = counted & (ranked[..., -1] - ranked[..., -2] > lead)
    found.tokens += int(clear.sum())
    best = given["top_ids"][..., 0]
    found.wrong += int((best != logits.argmax(axis=-1))[clear].sum())
    values = np.take_along_axis(given["logits"], given["top_ids"].astype(np.int64), axis=-1)
    np.testing.assert_array_equal(values, given["top_values"])
    assert (np.diff(given["top_values"], axis=-1) <= 0).all()


def _distance(expected: Array, given: Array, counted: Array) -> float:
    difference = np.abs(np.asarray(expected, np.float32) - given.astype(np.float32))[counted]
    return float(difference.max(initial=0.0))
