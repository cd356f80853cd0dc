"""Hold a quantised bundle against the fp32 model, and against eager PyTorch with its roundings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drl.export.checkpoint import Checkpoint
from drl.export.model import DualRouterModel, Route
from drl.export.model.norms import RMSNorm
from drl.export.options import KvCache, Precision
from drl.export.packed_weights import formats_of
from drl.export.quantization_report import (
    CLEAR_LEAD,
    LayerFlips,
    PathQuantization,
    QuantizationReport,
    limit_of,
    row_limit_of,
)
from drl.export.quantized_model import quantized_model
from drl.export.verify import SAMPLE, Expectation, Sample, encode, expect, replay
from drl.runtime.backends import Backend, Encoding, StepOutputs
from drl.runtime.manifest import RouterInfo
from drl.runtime.paths import choose_path
from drl.runtime.processors import largest

_SHAKE = 1e-6
_SEED = 21
_CANDIDATES = 4
_NORMALISER_TOLERANCE = 1e-4


@dataclass(frozen=True)
class QuantizedExpectation:
    """What eager models compute for the same inputs.

    Attributes:
        fp32: The checkpoint's model.
        rounded: The same with the bundle's roundings.
        shaken: That one again, with norms that differ by 1e-6.
    """

    fp32: Expectation
    rounded: Expectation
    shaken: Expectation


@dataclass
class Flips:
    """Choices and flips so far, by layer."""

    choices: dict[str, int] = field(default_factory=dict)
    flips: dict[str, int] = field(default_factory=dict)

    def compare(self, routes: Sequence[Route], bundle: Mapping[int, npt.NDArray[np.int32]]) -> None:
        """Add one call's choices; the order of a token's experts does not count."""
        for route in routes:
            actual = bundle[int(route.layer.rsplit(".", 1)[1])]
            expected = np.sort(route.expert_ids.numpy(), axis=-1)
            differs = (expected != np.sort(actual, axis=-1)).any(axis=-1)
            real = route.token_mask.numpy()
            self.choices[route.layer] = self.choices.get(route.layer, 0) + int(real.sum())
            flipped = int((differs & real).sum())
            self.flips[route.layer] = self.flips.get(route.layer, 0) + flipped

    def by_layer(self) -> tuple[LayerFlips, ...]:
        """One entry per layer, as they came."""
        return tuple(LayerFlips(name, n, self.flips[name]) for name, n in self.choices.items())


def expect_quantized(
    checkpoint: Checkpoint,
    precision: Precision,
    sample: Sample = SAMPLE,
    kv_cache: KvCache = "fp32",
) -> QuantizedExpectation:
    """Run the eager models, one after the other, on everything that a bundle is compared on."""
    fp32 = expect(checkpoint.model(), sample)
    model = quantized_model(checkpoint, formats_of(precision, kv_cache))
    rounded = expect(model, sample)
    _shake(model)
    return QuantizedExpectation(fp32, rounded, expect(model, sample))


def compare_quantized(
    expected: QuantizedExpectation,
    backend: Backend,
    bytes: int,
    fp32_bytes: int,
) -> QuantizationReport:
    """Compare a bundle's graphs with what the eager models compute.

    A row whose experts flipped goes on being compared: that is what the bundle predicts.

    Args:
        expected: Of the checkpoint that the bundle was made from.
        backend: The bundle's graphs, loaded.
        bytes: Of its weights.
        fp32_bytes: Of the weights that an fp32 bundle has.
    """
    encoding = encode(expected.fp32, backend)
    flips = Flips()
    flips.compare(expected.fp32.encoded.routes, encoding.experts)
    paths = tuple(
        _compare_path(expected, backend, path, encoding, flips)
        for path in range(len(expected.fp32.config.paths))
    )
    choices = list(_path_choices(expected.fp32, encoding))
    return QuantizationReport(
        bytes=bytes,
        fp32_bytes=fp32_bytes,
        path_choices=len(choices),
        path_choices_same=sum(choices),
        layers=flips.by_layer(),
        paths=paths,
    )


def distances(expected: Tensor, actual: Tensor) -> Tensor:
    """Return ‖actual − expected‖ / ‖expected‖ of logits `[B, T, V]`, flat; NaN counts as ∞."""
    return (
        ((actual - expected).norm(dim=-1) / expected.norm(dim=-1))
        .flatten()
        .nan_to_num(nan=float("inf"))
    )


def _compare_path(
    expected: QuantizedExpectation,
    backend: Backend,
    path: int,
    encoding: Encoding,
    flips: Flips,
) -> PathQuantization:
    outcomes = replay(expected.fp32, backend, encoding, path)
    calls = (each.calls[path] for each in (expected.fp32, expected.rounded, expected.shaken))
    rows = len(expected.fp32.source)
    predictions, distance, noise, checked = [], [], [], _Checked()
    for fp32, rounded, shaken, outputs in zip(*calls, outcomes, strict=True):
        flips.compare(fp32.routes, outputs.experts)
        checked.add(outputs)
        logits = torch.from_numpy(outputs.logits)
        predictions.append(compare_predictions(fp32.logits, logits))
        distance.append(distances(rounded.logits, logits).reshape(rows, -1))
        noise.append(distances(rounded.logits, shaken.logits).reshape(rows, -1))
    candidates = min(_CANDIDATES, expected.fp32.config.vocab_size - 1)
    if backend.ranks and candidates and not checked.fault:
        again = replay(expected.fp32, backend, encoding, path, candidates)
        for index, outputs in enumerate(again):
            checked.compare_candidates(index, outputs)
    divergence, same, clear = (torch.cat(parts) for parts in zip(*predictions, strict=True))
    parts = [
        (torch.cat(distance[part], dim=1), torch.cat(noise[part], dim=1))
        for part in (slice(1), slice(1, None))
        if distance[part]
    ]
    whole = _worst([(d.flatten(), n.flatten()) for d, n in parts], limit_of)
    row = _worst([pair for d, n in parts for pair in zip(d, n, strict=True)], row_limit_of)
    return PathQuantization(
        path=expected.fp32.config.paths[path].name,
        positions=len(divergence),
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        same=int(same.sum()),
        clear=int(clear.sum()),
        clear_same=int((clear & same).sum()),
        distance=whole[0],
        noise=whole[1],
        row_distance=row[0],
        row_noise=row[1],
        fault=checked.fault,
    )


@dataclass
class _Checked:
    """What must hold of a step's outputs whatever the model computes; the first fault is kept.

    Attributes:
        fault: What does not hold; empty if all does.
        rows: Logits `[B * T, c]` and ids of the candidates of each call, taken from whole rows.
        normalisers: `[B, T]` of each call, from whole rows in double precision.
    """

    fault: str = ""
    rows: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = field(default_factory=list)
    normalisers: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def add(self, outputs: StepOutputs) -> None:
        """Check a call that gave whole rows, and keep what candidates of it must be."""
        if self.fault:
            return
        logits = outputs.logits
        if not np.isfinite(logits).all():
            self.fault = "logits are not finite"
            return
        self.normalisers.append(torch.from_numpy(logits).double().logsumexp(dim=-1).numpy())
        self._compare_normalisers(len(self.normalisers) - 1, outputs)
        vocab_size = logits.shape[-1]
        count = min(_CANDIDATES, vocab_size)
        self.rows.append(largest(logits.reshape(-1, vocab_size), count))

    def compare_candidates(self, index: int, outputs: StepOutputs) -> None:
        """Check the same call with candidates in the place of whole rows."""
        if self.fault:
            return
        ids, values = self.rows[index]
        top = outputs.top
        if top is None:
            self.fault = "candidates are missing"
            return
        count = top.ids.shape[-1]
        found = top.ids.reshape(-1, count), top.values.reshape(-1, count)
        if not np.array_equal(found[0], ids[:, :count]):
            self.fault = "candidates are not the likeliest tokens"
        elif not np.array_equal(found[1], values[:, :count]):
            self.fault = "candidates have other logits than whole rows"
        else:
            self._compare_normalisers(index, outputs)

    def _compare_normalisers(self, index: int, outputs: StepOutputs) -> None:
        expected, actual = self.normalisers[index], outputs.normalisers
        limit = _NORMALISER_TOLERANCE * np.maximum(np.abs(expected), 1)
        if not np.isfinite(actual).all():
            self.fault = "normalisers are not finite"
        elif not (np.abs(actual - expected) <= limit).all():
            self.fault = "normalisers are not those of the logits"


def _worst(
    pairs: Sequence[tuple[Tensor, Tensor]], limit: Callable[[float], float]
) -> tuple[float, float]:
    """Return the median distance, and noise, that comes nearest to its limit or exceeds it most."""
    medians = [(_median(distance), _median(noise)) for distance, noise in pairs]
    return max(medians, key=lambda pair: pair[0] - limit(pair[1]))


def _median(values: Tensor) -> float:
    """Return the upper median: half of the positions gone wrong are seen."""
    return float(values.sort().values[len(values) // 2])


def compare_predictions(expected: Tensor, actual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare distributions `[B, T, V]`, position by position.

    Returns:
        KL divergence in nats, whether the likeliest token is the same, and whether it is clear in
        the expected distribution; flat.
    """
    expected, actual = expected.log_softmax(dim=-1), actual.log_softmax(dim=-1)
    divergence = (expected.exp() * (expected - actual)).sum(dim=-1)
    same = expected.argmax(dim=-1) == actual.argmax(dim=-1)
    best = expected.topk(min(2, expected.shape[-1]), dim=-1).values.exp()
    clear = best[..., 0] - best[..., -1] > CLEAR_LEAD
    return divergence.clamp(min=0).flatten(), same.flatten(), clear.flatten()


def _path_choices(expected: Expectation, encoding: Encoding) -> Iterator[bool]:
    """Yield for each sequence whether it takes the path that the fp32 model chooses."""
    router, scores = expected.config.path_router, expected.encoded.scores
    if router is None or scores is None or encoding.path_logits is None:
        return
    info, costs = RouterInfo(router.head, router.threshold), expected.config.path_costs
    rows = zip(scores.logits.numpy(), encoding.path_logits, expected.budget.tolist(), strict=True)
    for eager, bundle, budget in rows:
        ours, theirs = (choose_path(costs, info, each, budget) for each in (eager, bundle))
        yield ours == theirs


def _shake(model: DualRouterModel) -> None:
    """Change the weights of all norms by 1e-6, as much as the order of a sum may."""
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RMSNorm | nn.LayerNorm):
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.mul_(1 + _SHAKE * noise)
