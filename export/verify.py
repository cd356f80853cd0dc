"""Hold a bundle, run by the runtime's own backend, against the eager model it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from drl.export.model import DualRouterModel, Encoded, Route
from drl.export.model.generate import pad
from drl.export.parity import (
    ROUTE_MARGIN,
    ParityReport,
    PathParity,
    RouteParity,
    relative_difference,
)
from drl.runtime.backends import Backend, CrossAttention, Encoding, StepInputs

_PREFILL = 4
_STEPS = 32
_SOURCE_LENGTHS = (1, 5, 12, 24)
_SEED = 20


@dataclass
class _Drift:
    """The largest difference so far, over the rows that took the same routes so far."""

    rows: npt.NDArray[np.bool_]
    largest: float = 0.0
    positions: int = 0

    def compare(self, expected: torch.Tensor, actual: npt.NDArray[np.float32]) -> None:
        """Add logits `[B, T, V]` of the rows still compared."""
        rows = torch.from_numpy(self.rows)
        self.largest = max(
            self.largest, relative_difference(expected[rows], torch.from_numpy(actual)[rows])
        )
        self.positions += int(rows.sum()) * expected.shape[1]


@torch.inference_mode()
def verify(model: DualRouterModel, backend: Backend) -> ParityReport:
    """Compare encoder, bridge and decoder of every path: a prefill and then cached steps.

    Sources and targets are random tokens of ragged lengths, the same at every call.

    Args:
        model: The eager model, in evaluation mode.
        backend: The bundle's graphs, loaded.
    """
    generator = torch.Generator().manual_seed(_SEED)
    limit = model.config.max_source_length
    lengths = [min(length, limit) for length in _SOURCE_LENGTHS]
    vocabulary = model.config.vocab_size
    sources = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]
    source, source_lengths = pad(sources, model.config.pad_token_id)
    budget = torch.linspace(0, 1, len(sources))
    encoded = model.encode(source, source_lengths, budget)
    encoding = backend.encode(
        source.numpy(), source_lengths.numpy().astype(np.int32), budget.numpy(), with_experts=True
    )
    same = np.ones(len(sources), dtype=bool)
    routes = _compare_routes(encoded.routes, encoding.experts, same)
    valid = encoded.source_mask & torch.from_numpy(same)[:, None]
    states = torch.from_numpy(encoding.states)
    return ParityReport(
        encoder=relative_difference(encoded.states[valid], states[valid]),
        path_logits=_path_logit_difference(encoded, encoding, same),
        encoder_routes=routes,
        paths=tuple(
            _verify_path(model, backend, index, encoded, encoding, same.copy(), generator)
            for index in range(len(model.config.paths))
        ),
    )


def _path_logit_difference(
    encoded: Encoded, encoding: Encoding, rows: npt.NDArray[np.bool_]
) -> float:
    if encoded.scores is None or encoding.path_logits is None:
        return 0.0
    same = torch.from_numpy(rows)
    return relative_difference(
        encoded.scores.logits[same], torch.from_numpy(encoding.path_logits)[same]
    )


def _verify_path(
    model: DualRouterModel,
    backend: Backend,
    path: int,
    encoded: Encoded,
    encoding: Encoding,
    same: npt.NDArray[np.bool_],
    generator: torch.Generator,
) -> PathParity:
    """Compare one path; `same` marks the rows whose encoder took the same routes."""
    config, rows = model.config, len(same)
    prefill = min(_PREFILL, config.max_target_length)
    capacity = min(prefill + _STEPS, config.max_target_length)
    tokens = torch.randint(config.vocab_size, (rows, capacity), generator=generator)
    tokens[:, 0] = config.decoder_start_token_id
    memory = model.bridge(encoded, path)
    cross = backend.bridge(encoding, path)
    cache = model.decoder.empty_cache(rows, capacity, memory.path)
    buffers = _empty_buffers(model, path, rows, capacity)
    first, later = _Drift(same), _Drift(same)
    routes = RouteParity()
    for start, stop in [(0, prefill), *((t, t + 1) for t in range(prefill, capacity))]:
        new = torch.full((rows,), stop - start)
        logits, eager_routes = model.decode(tokens[:, start:stop], new, memory, cache)
        inputs = _step_inputs(path, tokens[:, start:stop].numpy(), start, cross, buffers)
        outputs = backend.step(inputs)
        routes += _compare_routes(eager_routes, outputs.experts, same)
        (first if start == 0 else later).compare(logits, outputs.logits)
    return PathParity(
        path=memory.path.name,
        prefill=first.largest,
        steps=later.largest,
        positions=first.positions + later.positions,
        routes=routes,
    )


Buffers = tuple[tuple[npt.NDArray[np.float32], ...], tuple[npt.NDArray[np.float32], ...]]


def _empty_buffers(model: DualRouterModel, path: int, rows: int, capacity: int) -> Buffers:
    """Return zeroed keys and values of every decoder layer, of no length where it is skipped."""
    config = model.config

    def side() -> tuple[npt.NDArray[np.float32], ...]:
        lengths = (
            capacity if layer in config.paths[path].layers else 0
            for layer in range(config.decoder_layers)
        )
        return tuple(
            np.zeros((rows, config.kv_heads, length, config.head_dim), np.float32)
            for length in lengths
        )

    return side(), side()


def _step_inputs(
    path: int, tokens: npt.NDArray[np.int64], start: int, cross: CrossAttention, buffers: Buffers
) -> StepInputs:
    rows, width = tokens.shape
    return StepInputs(
        path=path,
        tokens=np.ascontiguousarray(tokens),
        lengths=np.full(rows, start, np.int32),
        new_lengths=np.full(rows, width, np.int32),
        cross_bias=cross.bias,
        cross_keys=cross.keys,
        cross_values=cross.values,
        past_keys=buffers[0],
        past_values=buffers[1],
        with_experts=True,
    )


def _compare_routes(
    eager: list[Route],
    bundle: Mapping[int, npt.NDArray[np.int32]],
    same: npt.NDArray[np.bool_],
) -> RouteParity:
    """Compare the experts of every sparse layer; rows that differ are struck from `same`."""
    total = RouteParity()
    for route in eager:
        layer = int(route.layer.rsplit(".", 1)[1])
        actual = bundle[layer]
        real = route.token_mask.numpy() & same[:, None]
        clear = real & (route.margin().numpy() > ROUTE_MARGIN)
        expected = np.sort(route.expert_ids.numpy(), axis=-1)
        differs = (expected != np.sort(actual, axis=-1)).any(axis=-1)
        total += RouteParity(
            compared=int(clear.sum()),
            wrong=int((differs & clear).sum()),
            near_ties=int((real & ~clear).sum()),
            flips=int((differs & real & ~clear).sum()),
        )
        same &= ~(differs & real).any(axis=1)
    return total
