"""What a path costs in time on this machine, from `costs.json` that `drl-bench --calibrate` wrote.

The time of a request is modelled as alpha + beta * S + gamma * T milliseconds, with S source tokens
and T new tokens, for every path by itself.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from drl.runtime.errors import BundleError, RequestError, shorten
from drl.runtime.manifest import PathInfo
from drl.runtime.request import Request

COSTS_NAME = "costs.json"
FORMAT = "drl-costs"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PathCost:
    """The time of a request on one path, in milliseconds: `alpha + beta * S + gamma * T`."""

    alpha: float
    beta: float
    gamma: float

    def milliseconds(self, source: int, new: int) -> float:
        """The time for `source` tokens to read and `new` tokens to write."""
        return self.alpha + self.beta * source + self.gamma * new


@dataclass(frozen=True)
class CostModel:
    """The costs of a bundle's paths on one device with a number of threads.

    Attributes:
        device: The kind of device that they were measured on, such as "cuda".
        threads: Threads of the backend.
        paths: Name of a path to its cost.
    """

    device: str
    threads: int
    paths: Mapping[str, PathCost]

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """Read the calibration of the bundle in `folder`.

        Args:
            folder: The bundle's.
            device: The kind of device that it must be of.

        Raises:
            BundleError: There is none, it is damaged, or it is of another device.
        """
        remedy = f"run `drl-bench {folder} --calibrate`"
        if device != "cpu":
            remedy = f"{remedy[:-1]} --device {device}`"
        path = folder / COSTS_NAME
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BundleError(
                f"{folder} has no {COSTS_NAME}, which says what paths cost on this machine; "
                f"{remedy}"
            ) from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read ({error}); {remedy}") from None
        try:
            if (document["format"], document["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise BundleError(f"{path} is of another format; {remedy}")
            if (found := str(document["device"])) != device:
                raise BundleError(
                    f"{path} says what paths cost on {found}, and this engine runs on {device}; "
                    f"{remedy}"
                )
            paths = {name: _path_cost(values) for name, values in document["paths"].items()}
            return cls(str(document["device"]), int(document["threads"]), paths)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{path} is damaged ({error}); {remedy}") from None

    def choose(self, names: Sequence[str], source: int, new: int, budget_ms: float) -> int:
        """The index of the dearest path whose predicted time is within the budget.

        The cheapest path is taken where none is.

        Args:
            names: The bundle's paths, cheapest first.
            source: Source tokens.
            new: Tokens to generate.
            budget_ms: Milliseconds.

        Raises:
            BundleError: A path was not calibrated.
        """
        missing = [name for name in names if name not in self.paths]
        if missing:
            raise BundleError(
                f"{COSTS_NAME} knows nothing of path {missing[0]!r}; run `drl-bench --calibrate`"
            )
        fitting = [
            index
            for index, name in enumerate(names)
            if self.paths[name].milliseconds(source, new) <= budget_ms
        ]
        return fitting[-1] if fitting else 0


def within_budget(
    costs: CostModel, paths: Sequence[PathInfo], request: Request, budget_ms: Any
) -> Request:
    """The request with its budget lowered to the dearest path whose predicted time fits.

    The path router still chooses among those that fit. The request is taken to generate as many
    tokens as it may.

    Args:
        costs: The bundle's calibration.
        paths: The bundle's, cheapest first.
        request: A request that leaves its path open.
        budget_ms: Milliseconds.

    Raises:
        RequestError: The budget is no positive number, or the request names a path.
        BundleError: A path was not calibrated.
    """
    number = isinstance(budget_ms, int | float) and not isinstance(budget_ms, bool)
    if not number or not budget_ms > 0:
        raise RequestError(f"budget_ms must be a number above 0, not {shorten(budget_ms)}")
    if request.path is not None:
        raise RequestError("path and budget_ms contradict each other; give one of them")
    source, new = len(request.tokens), request.max_new_tokens
    dearest = paths[costs.choose([path.name for path in paths], source, new, budget_ms)]
    return dataclasses.replace(request, budget=min(request.budget, dearest.cost))


def _path_cost(values: Mapping[str, Any]) -> PathCost:
    cost = PathCost(*(float(values[f"{name}_ms"]) for name in ("alpha", "beta", "gamma")))
    if not all(math.isfinite(value) for value in vars(cost).values()):
        raise ValueError("a cost is no finite number")
    return cost
