"""Hold an imported checkpoint against what `transformers` computes with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from drl.export import ExportOptions, export, load_checkpoint
from drl.export.model import DualRouterModel, generate
from drl.export.model.generate import pad
from drl.runtime import Engine, GenerationConfig
from drl.runtime.backends import StepInputs
from drl.runtime.cache import KVCache
from tests.export.importers.reference import Array, Reference, vary

TOLERANCE = 1e-4
"""Largest difference of states and logits, relative to the largest magnitude."""


@dataclass(frozen=True)
class Errors:
    """Largest relative differences, of our eager model and of an exported bundle."""

    eager_states: float
    eager_logits: float
    bundle_states: float
    bundle_logits: float

    @property
    def worst(self) -> float:
        """The largest of all."""
        return max(self.eager_states, self.eager_logits, self.bundle_states, self.bundle_logits)


def random_sources(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Return random token lists of the given lengths, of ids from 3 on."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def assert_reproduced(folder: Path, expected: Reference, bundle: Path) -> Errors:
    """Assert that the checkpoint in `folder` computes what was expected, alone and in a batch.

    Encoder states, forced logits and greedy tokens are compared, of the eager model and of a
    bundle exported to `bundle`. It is also asserted that the generations vary.

    Returns:
        The differences, all within `TOLERANCE`.
    """
    assert vary(expected.tokens), expected.tokens
    model = load_checkpoint(folder).model()
    eager_states, eager_logits = _eager_differences(model, expected)
    _assert_eager_tokens(model, expected)
    export(folder, bundle, ExportOptions(verify=False))
    with Engine.from_bundle(bundle, threads=1) as engine:
        bundle_states, bundle_logits = _bundle_differences(engine, expected)
        _assert_bundle_tokens(engine, expected)
    errors = Errors(eager_states, eager_logits, bundle_states, bundle_logits)
    print(f"largest relative differences: {errors}")
    assert errors.worst <= TOLERANCE, errors
    return errors


def relative(expected: Array, actual: npt.NDArray[np.floating]) -> float:
    """Return the largest difference relative to the largest magnitude; NaN is infinitely wrong."""
    difference = np.nan_to_num(np.abs(expected - actual), nan=np.inf).max()
    return float(difference / np.abs(expected).max())


@torch.inference_mode()
def _eager_differences(model: DualRouterModel, expected: Reference) -> tuple[float, float]:
    states, logits = [], []
    every = list(range(len(expected.sources)))
    for rows in [*([row] for row in every), every]:
        source, lengths = pad([expected.sources[r] for r in rows], model.config.pad_token_id)
        encoded = model.encode(source, lengths)
        for row, found in zip(rows, encoded.states, strict=True):
            size = len(expected.sources[row])
            states.append(relative(expected.states[row], found[:size].numpy()))
        targets = torch.from_numpy(expected.targets[rows])
        sizes = torch.full((len(rows),), targets.shape[1])
        made, _ = model.decode(targets, sizes, model.bridge(encoded, 0))
        logits.append(relative(expected.logits[rows], made.numpy()))
    return max(states), max(logits)


def _assert_eager_tokens(model: DualRouterModel, expected: Reference) -> None:
    limit = expected.limit
    together = generate(model, expected.sources, max_new_tokens=limit)
    assert [made.tokens for made in together] == expected.tokens
    for source, tokens in zip(expected.sources, expected.tokens, strict=True):
        assert generate(model, [source], max_new_tokens=limit)[0].tokens == tokens


def _bundle_differences(engine: Engine, expected: Reference) -> tuple[float, float]:
    states, logits = [], []
    every = list(range(len(expected.sources)))
    for rows in [*([row] for row in every), every]:
        found, made = _run_bundle(engine, expected, rows)
        for row, each in zip(rows, found, strict=True):
            size = len(expected.sources[row])
            states.append(relative(expected.states[row], each[:size]))
        logits.append(relative(expected.logits[rows], made))
    return max(states), max(logits)


def _run_bundle(engine: Engine, expected: Reference, rows: list[int]) -> tuple[Array, Array]:
    """Return the bundle's encoder states `[B, S, d]` and forced logits `[B, T, V]`."""
    manifest, backend = engine.bundle.manifest, engine.backend
    source, lengths = pad([expected.sources[row] for row in rows], manifest.tokens.pad)
    count, steps = len(rows), expected.targets.shape[1]
    encoding = backend.encode(
        source.numpy(), lengths.numpy().astype(np.int32), np.ones(count, np.float32)
    )
    cache = KVCache(manifest.cache, manifest.paths[0].layers, count, steps)
    cache.append(backend.bridge(encoding, 0))
    cache.reserve(steps)
    (past_k, past_v), (bias, cross_k, cross_v) = cache.past(), cache.cross()
    made = []
    for t in range(steps):
        inputs = StepInputs(
            path=0,
            tokens=np.ascontiguousarray(expected.targets[rows, t : t + 1]),
            lengths=np.full(count, t, np.int32),
            new_lengths=np.ones(count, np.int32),
            cross_bias=bias,
            cross_keys=cross_k,
            cross_values=cross_v,
            past_keys=past_k,
            past_values=past_v,
        )
        made.append(backend.step(inputs).logits.copy())
    return encoding.states, np.concatenate(made, axis=1)


def _assert_bundle_tokens(engine: Engine, expected: Reference) -> None:
    config = GenerationConfig(max_new_tokens=expected.limit, do_sample=False)
    together = engine.generate(expected.sources, config)
    assert [result.tokens for result in together] == expected.tokens
    for source, tokens in zip(expected.sources, expected.tokens, strict=True):
        assert engine.generate([source], config)[0].tokens == tokens
