"""Hold a bundle, run by the runtime's own backend, against the eager model it was made from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from drl.export.model import DualRouterModel, Encoded, ModelConfig, Route
from drl.export.model.generate import pad
from drl.export.parity import (
    ParityReport,
    PathParity,
    RouteParity,
    absolute_difference,
    relative_difference,
)
from drl.export.routes import RouteTally
from drl.runtime.backends import Backend, Encoding, StepInputs, StepOutputs
from drl.runtime.cache import KVCache
from drl.runtime.manifest import CacheInfo

_PREFILL = 4


@dataclass(frozen=True)
class Sample:
    """The random inputs that a comparison is made on.

    Attributes:
        source_lengths: Tokens of each source; longer ones than the model takes are cut.
        steps: Cached single-token steps after a first call of a few tokens.
        seed: Of the draws.
    """

    source_lengths: tuple[int, ...] = (1, 5, 12, 24)
    steps: int = 32
    seed: int = 20


SAMPLE = Sample()
"""What an export is checked on."""


@dataclass
class _Drift:
    """The largest difference so far, over the rows that took the same routes so far."""

    rows: npt.NDArray[np.bool_]
    largest: float = 0.0
    absolute: float = 0.0
    positions: int = 0

    def compare(self, expected: torch.Tensor, actual: npt.NDArray[np.float32]) -> None:
        """Add logits `[B, T, V]` of the rows still compared."""
        rows = torch.from_numpy(self.rows)
        pair = expected[rows], torch.from_numpy(actual)[rows]
        self.largest = max(self.largest, relative_difference(*pair))
        self.absolute = max(self.absolute, absolute_difference(*pair))
        self.positions += int(rows.sum()) * expected.shape[1]


@dataclass(frozen=True)
class Call:
    """One call of the decoder: which columns of the tokens it is given, and what eager makes."""

    start: int
    stop: int
    logits: torch.Tensor
    routes: list[Route]


@dataclass(frozen=True)
class Expectation:
    """What the eager model computes for random tokens of ragged lengths, the same at every call.

    It is taken before the bundle is loaded, so that a large model and its bundle need not be in
    memory together.

    Attributes:
        config: The model's configuration.
        source: int64 `[B, S]`.
        budget: fp32 `[B]`.
        encoded: The encoder's view of the sources.
        tokens: Decoder inputs int64 `[B, C]`, start token first, per path.
        calls: A prefill and then single-token steps over a cache, per path.
    """

    config: ModelConfig
    source: torch.Tensor
    budget: torch.Tensor
    encoded: Encoded
    tokens: list[torch.Tensor]
    calls: list[list[Call]]


@torch.inference_mode()
def expect(model: DualRouterModel, sample: Sample = SAMPLE) -> Expectation:
    """Run the eager model, in evaluation mode, on everything that a bundle is compared on."""
    config = model.config
    generator = torch.Generator().manual_seed(sample.seed)
    lengths = [min(length, config.max_source_length) for length in sample.source_lengths]
    vocabulary = config.vocab_size
    sources = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]
    source, source_lengths = pad(sources, config.pad_token_id)
    budget = torch.linspace(0, 1, len(sources))
    encoded = model.encode(source, source_lengths, budget)
    prefill = min(_PREFILL, config.max_target_length)
    capacity = min(prefill + sample.steps, config.max_target_length)
    spans = [(0, prefill), *((t, t + 1) for t in range(prefill, capacity))]
    tokens, calls = [], []
    for path in range(len(config.paths)):
        drawn = torch.randint(vocabulary, (len(sources), capacity), generator=generator)
        drawn[:, 0] = config.decoder_start_token_id
        memory = model.bridge(encoded, path)
        cache = model.decoder.empty_cache(len(sources), capacity, memory.path)
        made = []
        for start, stop in spans:
            new = torch.full((len(sources),), stop - start)
            made.append(Call(start, stop, *model.decode(drawn[:, start:stop], new, memory, cache)))
        tokens.append(drawn)
        calls.append(made)
    return Expectation(config, source, budget, encoded, tokens, calls)


def compare(expected: Expectation, backend: Backend) -> ParityReport:
    """Hold a bundle's graphs against what the eager model computes.

    Args:
        expected: Of the model that the bundle was made from.
        backend: The bundle's graphs, loaded.
    """
    encoded = expected.encoded
    encoding = encode(expected, backend)
    same = np.ones(len(encoded.lengths), dtype=bool)
    routes = RouteTally(expected.config.expert_capacity)
    routes.add(encoded.routes, encoding.experts, same)
    valid = encoded.source_mask & torch.from_numpy(same)[:, None]
    states = torch.from_numpy(encoding.arrays.to_host(encoding.states)).float()
    return ParityReport(
        encoder=relative_difference(encoded.states[valid], states[valid]),
        path_logits=_path_logit_difference(encoded, encoding, same),
        encoder_routes=RouteParity.of(routes.layers()),
        paths=tuple(
            _compare_path(expected, backend, path, encoding, same.copy())
            for path in range(len(expected.config.paths))
        ),
    )


def encode(expected: Expectation, backend: Backend) -> Encoding:
    """Run a bundle's encoder on the sources of an expectation."""
    lengths = expected.encoded.lengths.numpy().astype(np.int32)
    return backend.encode(
        expected.source.numpy(), lengths, expected.budget.numpy(), with_experts=True
    )


def replay(
    expected: Expectation,
    backend: Backend,
    encoding: Encoding,
    path: int,
    candidates: int = 0,
    before: Callable[[Call], None] = lambda _: None,
) -> Iterator[StepOutputs]:
    """Run a bundle's decoder on the calls of a path; an output holds until the next one.

    With `candidates`, the outputs hold that many in the place of the logits.

    Args:
        expected: What to run.
        backend: The bundle's graphs, loaded.
        encoding: The sources, from that backend.
        path: Index of the path.
        candidates: See `StepInputs`.
        before: Told of every call before it is made.
    """
    config, tokens = expected.config, expected.tokens[path].numpy()
    rows, capacity = tokens.shape
    layers = config.paths[path].layers
    cross = backend.bridge(encoding, path)
    info = CacheInfo(
        config.decoder_layers,
        config.kv_heads,
        config.head_dim,
        str(backend.cache_dtype),
        cross.keys[layers[0]].shape[3] - config.head_dim,
    )
    cache = KVCache(info, layers, rows, capacity, rules=backend)
    cache.append(cross)
    cache.reserve(capacity)
    for call in expected.calls[path]:
        before(call)
        new = np.ascontiguousarray(tokens[:, call.start : call.stop])
        yield backend.step(_step_inputs(path, new, cache, candidates))
        cache.lengths[:rows] = call.stop
    backend.release(path, cache.width)


def _path_logit_difference(
    encoded: Encoded, encoding: Encoding, rows: npt.NDArray[np.bool_]
) -> float:
    if encoded.scores is None:
        return 0.0
    if encoding.path_logits is None:
        return float("inf")  # the bundle lost its path router
    same = torch.from_numpy(rows)
    return relative_difference(
        encoded.scores.logits[same], torch.from_numpy(encoding.path_logits)[same]
    )


def _compare_path(
    expected: Expectation,
    backend: Backend,
    path: int,
    encoding: Encoding,
    same: npt.NDArray[np.bool_],
) -> PathParity:
    """Compare one path; `same` marks the rows whose encoder took the same routes."""
    first, later = _Drift(same), _Drift(same)
    routes = RouteTally()
    outcomes = replay(expected, backend, encoding, path)
    for call, outputs in zip(expected.calls[path], outcomes, strict=True):
        routes.add(call.routes, outputs.experts, same)
        (first if call.start == 0 else later).compare(call.logits, outputs.logits)
    return PathParity(
        path=expected.config.paths[path].name,
        prefill=first.largest,
        steps=later.largest,
        absolute=max(first.absolute, later.absolute),
        positions=first.positions + later.positions,
        routes=RouteParity.of(routes.layers()),
    )


def _step_inputs(
    path: int, tokens: npt.NDArray[np.int64], cache: KVCache, candidates: int
) -> StepInputs:
    rows, width = tokens.shape
    cross, past = cache.cross(), cache.past()
    return StepInputs(
        path=path,
        tokens=tokens,
        lengths=cache.lengths[:rows],
        new_lengths=np.full(rows, width, np.int32),
        cross_bias=cross[0],
        cross_keys=cross[1],
        cross_values=cross[2],
        past_keys=past[0],
        past_values=past[1],
        with_experts=True,
        candidates=candidates,
    )
