"""What a quantised precision costs and saves: how far the bundle is from the fp32 model.

Two comparisons. Against the fp32 model, which tells what rounding does to the predictions: nothing
there is a failure. Against the eager model with the same roundings, which tells whether the graphs
are right: that one decides.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

LIMIT = 0.02
"""Largest median distance from the eager model with the same roundings, beyond the noise.

It holds for the prefill and for the cached steps, each over all rows.

The distance of two logit vectors is ‖a − b‖ / ‖b‖. A value at the boundary of two steps falls to
either side by the last bit of a float, and the layers after it amplify that: in shallow models most
positions agree to 1e-6 and some differ by 0.03, in deep ones all differ by as much. Two eager runs
whose norms differ by 1e-6 show how far this goes in a model: the noise.

Measured over the configurations of the export tests, two seeds each, in all three precisions: of
288 medians 266 are below 1e-5, the largest is 0.016, and none is more than 0.01 beyond the noise.
Of models with the size of T5-small it is 0.022, of deeper ones with experts up to 0.065; the noise
is as much. Graphs with a mistake (a residual, norm or bias left out, matrices exchanged) are 0.44
away and more.
"""

MAX_LIMIT = 0.2
"""The limit of a model however large its noise is."""

ROW_LIMIT = 0.5
"""Largest median distance of one row, beyond the noise of that row.

A row whose source is routed to other experts stays away from the eager one: of the configurations
above by up to 0.31 where the noise is as much, and by 0.034 where it is none. A row of zeros is 1
away, and one of something else about 1.4.
"""

MAX_ROW_LIMIT = 0.8
"""The limit of a row however large its noise is."""

CLEAR_LEAD = 0.1
"""A token is clear if the fp32 model gives it a probability that much above the second best's."""


@dataclass(frozen=True)
class LayerFlips:
    """The choices of experts of one sparse layer.

    Attributes:
        layer: Its name, such as `decoder.layers.1`.
        choices: Tokens routed, on all paths.
        flips: How many of them the bundle sends to other experts than the fp32 model does.
    """

    layer: str
    choices: int
    flips: int


@dataclass(frozen=True)
class PathQuantization:
    """One path: next-token distributions after the same tokens.

    Attributes:
        path: The path's name.
        positions: Distributions compared.
        kl_mean: Mean KL divergence from the fp32 model, in nats.
        kl_max: The largest.
        same: Positions whose likeliest token is the fp32 model's.
        clear: Positions whose likeliest token leads by `CLEAR_LEAD` in the fp32 model.
        clear_same: How many of them have that token in the bundle.
        distance: Median distance from the eager model with the same roundings, of the prefill or
            of the steps, whichever comes nearer to its limit.
        noise: Median distance of two such models that differ by 1e-6, over the same positions.
        row_distance: As `distance`, of the row that comes nearest to its limit.
        row_noise: As `noise`, of that row.
        fault: What is wrong beside distances, such as `logits are not finite`; else empty.
    """

    path: str
    positions: int
    kl_mean: float
    kl_max: float
    same: int
    clear: int
    clear_same: int
    distance: float
    noise: float
    row_distance: float
    row_noise: float
    fault: str = ""

    @property
    def failure(self) -> str:
        """What the graphs compute that they should not, for people; empty if nothing."""
        if self.fault:
            return f"{self.fault} on path {self.path}"
        limit = limit_of(self.noise)
        if not self.distance <= limit:  # NaN fails
            return f"logits of path {self.path} are {self.distance:.1e} away (limit {limit:.1e})"
        limit = row_limit_of(self.row_noise)
        if not self.row_distance <= limit:
            return (
                f"logits of one row on path {self.path} are {self.row_distance:.1e} away "
                f"(limit {limit:.1e})"
            )
        return ""

    @property
    def passed(self) -> bool:
        """Whether the graphs compute what they should."""
        return not self.failure


def limit_of(noise: float) -> float:
    """Return the largest distance over all rows that is no mistake of the graphs."""
    return min(LIMIT + noise, MAX_LIMIT)


def row_limit_of(noise: float) -> float:
    """Return the largest distance of one row that is no mistake of the graphs."""
    return min(ROW_LIMIT + noise, MAX_ROW_LIMIT)


@dataclass(frozen=True)
class Accuracy:
    """Answers to given inputs that are exactly the expected ones, decoded greedily.

    Attributes:
        pairs: Inputs.
        fp32: Right answers of the fp32 bundle.
        quantized: Right answers of the quantised one.
    """

    pairs: int
    fp32: int
    quantized: int


@dataclass(frozen=True)
class QuantizationReport:
    """A quantised bundle against the fp32 model.

    Attributes:
        bytes: Of its weights.
        fp32_bytes: Of the weights that an fp32 bundle has.
        path_choices: Sequences for which the path router chose.
        path_choices_same: How many of them take the fp32 model's path.
        layers: One entry per sparse layer.
        paths: One entry per path.
        accuracy: On an evaluation set, if one was given.
    """

    bytes: int
    fp32_bytes: int
    path_choices: int
    path_choices_same: int
    layers: tuple[LayerFlips, ...]
    paths: tuple[PathQuantization, ...]
    accuracy: Accuracy | None = None

    @property
    def passed(self) -> bool:
        """Whether the graphs compute what they should, on every path."""
        return all(path.passed for path in self.paths)

    def summary(self) -> dict[str, Any]:
        """Return what the bundle's manifest keeps."""
        positions = sum(path.positions for path in self.paths)
        choices = sum(layer.choices for layer in self.layers)
        flips = sum(layer.flips for layer in self.layers)
        return {
            "passed": self.passed,
            "limit": LIMIT,
            "distance": _rounded(max(path.distance for path in self.paths)),
            "kl_mean": _rounded(
                sum(path.kl_mean * path.positions for path in self.paths) / positions
            ),
            "kl_max": _rounded(max(path.kl_max for path in self.paths)),
            "tokens_same": _rounded(sum(path.same for path in self.paths) / positions),
            "routes_flipped": _rounded(flips / max(choices, 1)),
            "weights_bytes": self.bytes,
            "weights_bytes_fp32": self.fp32_bytes,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as JSON values, fractions rounded to two digits."""
        return self.summary() | {
            "clear_lead": CLEAR_LEAD,
            "path_choices": self.path_choices,
            "path_choices_same": self.path_choices_same,
            "layers": [_plain(asdict(layer)) for layer in self.layers],
            "paths": [_plain(asdict(path)) for path in self.paths],
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
        }


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, float) else value
        for name, value in fields.items()
    }
