"""How far a bundle is from the eager model: what was compared, and how it came out.

The differences that decide are absolute up to a magnitude of 1, and relative to the largest value
beyond it: fp32 has seven digits, and some models' logits reach into the hundreds. The absolute ones
are recorded beside them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any, Self

from torch import Tensor

from drl.export.routes import ROUTE_MARGIN, LayerRoutes

TOLERANCE = 1e-4
"""Largest difference of a logit that an fp32 bundle may show against eager PyTorch."""


@dataclass(frozen=True)
class RouteParity:
    """Choices of experts, token by token and layer by layer.

    Attributes:
        compared: Clear choices: see `LayerRoutes`.
        wrong: How many of them differ; any is a failure.
        near_ties: The others, within `ROUTE_MARGIN`.
        flips: How many of those differ. A row is left out of the numeric comparison from its
            first flip on, since from there it computes something else.
    """

    compared: int = 0
    wrong: int = 0
    near_ties: int = 0
    flips: int = 0

    @classmethod
    def of(cls, layers: Iterable[LayerRoutes]) -> Self:
        """Add up the counts of several layers."""
        counts = [(each.clear, each.wrong, each.near_ties, each.flips) for each in layers]
        return cls(*(sum(column) for column in zip(*counts, strict=True)))

    def __add__(self, other: "RouteParity") -> "RouteParity":
        """Add up the counts."""
        return RouteParity(
            self.compared + other.compared,
            self.wrong + other.wrong,
            self.near_ties + other.near_ties,
            self.flips + other.flips,
        )


@dataclass(frozen=True)
class PathParity:
    """One path: the largest logit differences, and the experts of its decoder layers.

    Attributes:
        path: The path's name.
        prefill: Difference over the positions of the first call.
        steps: Difference over the cached single-token steps after it.
        absolute: Difference over both, absolute whatever the magnitude.
        positions: Logit vectors compared.
        routes: The decoder's choices of experts.
    """

    path: str
    prefill: float
    steps: float
    absolute: float
    positions: int
    routes: RouteParity

    @property
    def drift(self) -> float:
        """The larger of `prefill` and `steps`, which decides."""
        return max(self.prefill, self.steps)


@dataclass(frozen=True)
class ParityReport:
    """The bundle against the eager model, as largest differences.

    Attributes:
        encoder: Of the encoder states.
        path_logits: Of the path logits; 0 without a path router.
        encoder_routes: The encoder's choices of experts.
        paths: One entry per path.
    """

    encoder: float
    path_logits: float
    encoder_routes: RouteParity
    paths: tuple[PathParity, ...]

    @property
    def drift(self) -> float:
        """The largest difference of any logit."""
        return max(self.path_logits, *(path.drift for path in self.paths))

    @property
    def routes(self) -> RouteParity:
        """All choices of experts together."""
        return sum((path.routes for path in self.paths), start=self.encoder_routes)

    @property
    def passed(self) -> bool:
        """Whether every logit is within the tolerance and no clear choice differs."""
        positions = all(path.positions for path in self.paths)
        return positions and self.drift <= TOLERANCE and not self.routes.wrong

    def summary(self) -> dict[str, Any]:
        """Return what the bundle's manifest keeps."""
        return {
            "passed": self.passed,
            "tolerance": TOLERANCE,
            "max_logit_difference": _rounded(self.drift),
            "routes_wrong": self.routes.wrong,
            "route_flips": self.routes.flips,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as JSON values, differences rounded to two digits."""
        document = self.summary() | {"route_margin": ROUTE_MARGIN}
        document |= {name: _plain(value) for name, value in asdict(self).items()}
        return document


def relative_difference(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference, over the largest expected magnitude where that is above 1.

    NaN counts as infinitely far, in either of them.
    """
    if not expected.numel():
        return 0.0
    found = absolute_difference(expected, actual) / max(float(expected.abs().max()), 1.0)
    return found if isfinite(found) else inf


def absolute_difference(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference; NaN counts as infinitely far."""
    if not expected.numel():
        return 0.0
    return float((expected - actual).abs().nan_to_num(nan=float("inf")).max())


def _rounded(value: float) -> float:
    return float(f"{value:.1e}")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return _rounded(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
