"""Hold a quantised bundle against the fp32 model, and against eager PyTorch with its roundings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drl.export.checkpoint import Checkpoint
from drl.export.model import DualRouterModel, Route
from drl.export.model.norms import RMSNorm
from drl.export.options import Precision
from drl.export.packed_weights import FORMATS
from drl.export.quantization_report import (
    CLEAR_LEAD,
    LayerFlips,
    PathQuantization,
    QuantizationReport,
)
from drl.export.quantized_model import quantized_model
from drl.export.verify import Expectation, encode, expect, replay
from drl.runtime.backends import Backend, Encoding
from drl.runtime.manifest import RouterInfo
from drl.runtime.paths import choose_path

_SHAKE = 1e-6
_SEED = 21


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


def expect_quantized(checkpoint: Checkpoint, precision: Precision) -> QuantizedExpectation:
    """Run the eager models, one after the other, on everything that a bundle is compared on."""
    fp32 = expect(checkpoint.model())
    model = quantized_model(checkpoint, FORMATS[precision])
    rounded = expect(model)
    _shake(model)
    return QuantizedExpectation(fp32, rounded, expect(model))


def compare_quantized(
    expected: QuantizedExpectation,
    backend: Backend,
    precision: Precision,
    bytes: int,
    fp32_bytes: int,
) -> QuantizationReport:
    """Compare a bundle's graphs with what the eager models compute.

    A row whose experts flipped goes on being compared: that is what the bundle predicts.

    Args:
        expected: Of the checkpoint that the bundle was made from.
        backend: The bundle's graphs, loaded.
        precision: The bundle's.
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
        precision=precision,
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
    found = []
    for fp32, rounded, shaken, outputs in zip(*calls, outcomes, strict=True):
        flips.compare(fp32.routes, outputs.experts)
        logits = torch.from_numpy(outputs.logits)
        divergence, same, clear = compare_predictions(fp32.logits, logits)
        distance = distances(rounded.logits, logits)
        noise = distances(rounded.logits, shaken.logits)
        found.append((divergence, same, clear, distance, noise))
    divergence, same, clear, distance, noise = (
        torch.cat(parts) for parts in zip(*found, strict=True)
    )
    return PathQuantization(
        path=expected.fp32.config.paths[path].name,
        positions=len(divergence),
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        same=int(same.sum()),
        clear=int(clear.sum()),
        clear_same=int((clear & same).sum()),
        distance=float(distance.median()),
        noise=float(noise.median()),
    )


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
