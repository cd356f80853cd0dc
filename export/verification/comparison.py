"""Compare a backend with what the eager model computes: logits, predictions, routes and paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from drl.export.model import Route
from drl.export.model.path_router import keep_counts
from drl.export.parity import absolute_difference, relative_difference
from drl.export.routes import RouteTally
from drl.export.verification.ranking import RankingCheck
from drl.export.verification.report import Comparison, KeptStates, PathComparison
from drl.export.verify import Expectation, encode, replay
from drl.export.verify_quantized import compare_predictions
from drl.runtime.arrays import BackendArray
from drl.runtime.backends import Backend, Encoding
from drl.runtime.backends.memory import ArrayLibrary
from drl.runtime.manifest import RouterInfo
from drl.runtime.paths import choose_path

Before = Callable[[Sequence[Route]], None]
"""Told of the reference's routes in the call that comes next."""


def compare_backend(
    expected: Expectation, backend: Backend, before: Before | None = None
) -> Comparison:
    """Compare a backend with the eager model.

    Args:
        expected: What the eager model computes.
        backend: The graphs, loaded.
        before: Makes the backend take the reference's routes in the next call, and the states kept
            are the reference's too. Its own are then what it would have chosen, layer by layer, and
            a row that differs stays in.
    """
    encoded, config = expected.encoded, expected.config
    if before is not None:
        before(encoded.routes)
    encoding = encode(expected, backend)
    rows = None if before is not None else np.ones(len(encoded.lengths), bool)
    routes = RouteTally(config.expert_capacity)
    routes.add(encoded.routes, encoding.experts, rows)
    states = host_floats(encoding.arrays, encoding.states)
    valid = encoded.source_mask if rows is None else encoded.source_mask & _column(rows)
    logits, same, choices = _compare_path_choices(expected, encoding, rows)
    paths = tuple(
        _compare_path(expected, backend, path, encoding, rows, before)
        for path in range(len(config.paths))
    )
    return Comparison(
        encoder=relative_difference(encoded.states[valid], states[valid]),
        encoder_routes=routes.layers(),
        path_logits=logits,
        path_choices=choices,
        path_choices_same=same,
        paths=paths,
    )


def host_floats(arrays: ArrayLibrary, array: BackendArray) -> Tensor:
    """Return floats of a backend as an fp32 tensor of the host; bfloat16 comes as its bits."""
    with arrays.ordered():
        found = np.ascontiguousarray(arrays.to_host(array))
    if found.dtype == np.uint16:
        return torch.from_numpy(found.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(found).float()


@dataclass
class _Drift:
    """Differences of logits so far."""

    largest: float = 0.0
    relative: float = 0.0
    total: float = 0.0
    positions: int = 0
    step_positions: int = 0
    vocabulary: int = 1
    clear: int = 0
    clear_same: int = 0

    def add(self, expected: Tensor, actual: Tensor, step: bool) -> None:
        """Add logits `[n, T, V]`, of a cached step or the call before."""
        self.largest = max(self.largest, absolute_difference(expected, actual))
        self.relative = max(self.relative, relative_difference(expected, actual))
        self.total += float((expected - actual).abs().double().sum())
        count = expected.shape[0] * expected.shape[1]
        self.positions += count
        self.step_positions += count * step
        self.vocabulary = expected.shape[2]
        _, same, clear = compare_predictions(expected, actual)
        self.clear += int(clear.sum())
        self.clear_same += int((clear & same).sum())

    @property
    def mean(self) -> float:
        """The mean difference of a logit."""
        return self.total / max(self.positions * self.vocabulary, 1)


def _compare_path(
    expected: Expectation,
    backend: Backend,
    path: int,
    encoding: Encoding,
    rows: np.ndarray | None,
    before: Before | None,
) -> PathComparison:
    kept, alike = _compare_kept(expected, encoding, path, rows)
    rows = None if rows is None else rows & alike
    if before is not None:
        encoding = _with_saliency_of(expected, encoding)
    drift, routes, predictions = _Drift(), RouteTally(), []
    outcomes = replay(
        expected,
        backend,
        encoding,
        path,
        before=lambda call: None if before is None else before(call.routes),
    )
    ranking = RankingCheck(backend.ranks and before is None)
    for call, outputs in zip(expected.calls[path], outcomes, strict=True):
        routes.add(call.routes, outputs.experts, rows)
        ranking.add(outputs)
        logits = torch.from_numpy(outputs.logits)
        left = slice(None) if rows is None else torch.from_numpy(rows)
        drift.add(call.logits[left], logits[left], step=call.start > 0)
        predictions.append(compare_predictions(call.logits, logits))
    if count := ranking.candidates:
        for index, outputs in enumerate(replay(expected, backend, encoding, path, count)):
            ranking.compare(index, outputs)
    divergence, same, _ = (torch.cat(parts) for parts in zip(*predictions, strict=True))
    divergence = divergence.nan_to_num(nan=float("inf"))
    return PathComparison(
        path=expected.config.paths[path].name,
        positions=drift.positions,
        step_positions=drift.step_positions,
        all_positions=len(divergence),
        all_step_positions=sum(call.logits[..., 0].numel() for call in expected.calls[path][1:]),
        largest=drift.largest,
        mean=drift.mean,
        relative=drift.relative,
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        same=int(same.sum()),
        clear=drift.clear,
        clear_same=drift.clear_same,
        routes=routes.layers(),
        kept=kept,
        ranking=ranking.largest,
    )


def _compare_kept(
    expected: Expectation, encoding: Encoding, path: int, rows: np.ndarray | None
) -> tuple[KeptStates, np.ndarray]:
    """Compare the states that a path keeps; return for each source whether they are the same."""
    lengths, scores = expected.encoded.lengths, expected.encoded.scores
    counted = np.ones(len(lengths), bool) if rows is None else rows
    same = np.ones(len(lengths), bool)
    sources = int(counted.sum())
    if scores is None:
        return KeptStates(sources), same
    if encoding.saliency is None:
        return KeptStates(sources, sources, float("inf")), same
    saliency = host_floats(encoding.arrays, encoding.saliency)
    widest = 0.0
    counts = keep_counts(lengths, expected.config.paths[path]).tolist()
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts, strict=True)):
        one, two = scores.saliency[row, :length], saliency[row, :length]
        order, found = (x.argsort(descending=True, stable=True) for x in (one, two))
        same[row] = set(order[:count].tolist()) == set(found[:count].tolist())
        if counted[row] and not same[row]:
            lead = float(one[order[count - 1]] - one[found[:count]].min())
            widest = max(widest, lead / max(float(one.abs().max()), 1.0))
    return KeptStates(sources, int((counted & ~same).sum()), widest), same


def _with_saliency_of(expected: Expectation, encoding: Encoding) -> Encoding:
    """Return the encoding with the reference's saliency, so that the same states are kept."""
    scores, arrays = expected.encoded.scores, encoding.arrays
    if scores is None or encoding.saliency is None:
        return encoding
    with arrays.ordered():
        return replace(encoding, saliency=arrays.from_host(scores.saliency.numpy(), "saliency"))


def _compare_path_choices(
    expected: Expectation, encoding: Encoding, rows: np.ndarray | None
) -> tuple[float, int, int]:
    """Return the difference of path logits over `rows`, and choices: the same, and all."""
    router, scores = expected.config.path_router, expected.encoded.scores
    if router is None or scores is None:
        return 0.0, 0, 0
    if encoding.path_logits is None:
        return float("inf"), 0, len(scores.logits)
    eager, found = scores.logits, torch.from_numpy(encoding.path_logits).float()
    kept = slice(None) if rows is None else torch.from_numpy(rows)
    info, costs = RouterInfo(router.head, router.threshold), expected.config.path_costs
    same = sum(
        choose_path(costs, info, one.numpy(), budget) == choose_path(costs, info, two, budget)
        for one, two, budget in zip(
            eager, encoding.path_logits, expected.budget.tolist(), strict=True
        )
    )
    return relative_difference(eager[kept], found[kept]), same, len(eager)


def _column(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows)[:, None]
