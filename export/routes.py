"""Choices of experts held against the reference's: which were clear, and which of them differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from drl.export.model import Route
from drl.runtime.arrays import Int32

ROUTE_MARGIN = 1e-3
"""Experts must agree wherever the last chosen one leads the first left out by more than this."""


@dataclass(frozen=True)
class LayerRoutes:
    """The choices of experts of one sparse layer.

    Attributes:
        layer: Its name, such as `decoder.layers.1`.
        clear: Choices whose margin exceeds 1e-3, that of the last expert chosen over the first one
            left out; and those where an expert taken lies further back than that.
        wrong: How many of them differ.
        near_ties: The others.
        flips: How many of them differ.
        widest: The largest lead, of the last expert that the reference chose over the least
            probable one taken, where they differ.
    """

    layer: str
    clear: int = 0
    wrong: int = 0
    near_ties: int = 0
    flips: int = 0
    widest: float = 0.0

    def __add__(self, other: "LayerRoutes") -> "LayerRoutes":
        """Add up the counts of the same layer."""
        return LayerRoutes(
            self.layer,
            self.clear + other.clear,
            self.wrong + other.wrong,
            self.near_ties + other.near_ties,
            self.flips + other.flips,
            max(self.widest, other.widest),
        )


def lead_over(route: Route, ids: Int32) -> np.ndarray:
    """Return how far the reference's last choice leads the least probable expert taken.

    An expert that is full is not told, so at least the lead over the first one left out counts.

    Args:
        route: The reference's.
        ids: Expert ids `[B, T, k]` of the backend, other ones than the reference's; -1 for none.

    Returns:
        fp32 `[B, T]`; infinite where ids are of no expert, or an expert is taken twice.
    """
    ranked = route.probabilities.numpy()
    last = np.sort(ranked, axis=-1)[..., -ids.shape[-1]]
    named = np.clip(ids, 0, ranked.shape[-1] - 1)
    taken = np.where(ids < 0, np.inf, np.take_along_axis(ranked, named, axis=-1)).min(axis=-1)
    ordered = np.sort(ids, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    impossible = (ids >= ranked.shape[-1]).any(axis=-1) | twice.any(axis=-1)
    lead: np.ndarray = np.maximum(route.margin().numpy(), last - taken)
    return np.where(impossible, np.inf, lead)


@dataclass
class RouteTally:
    """Choices of experts so far, by layer.

    Attributes:
        capacity: Tokens of a row that an expert of the encoder takes, or None. Where it is full
            depends on earlier tokens, so of a row that differs only the first difference counts.
    """

    capacity: int | None = None
    _found: dict[str, LayerRoutes] = field(default_factory=dict)

    def add(
        self, routes: Sequence[Route], actual: Mapping[int, Int32], rows: np.ndarray | None = None
    ) -> None:
        """Add the choices of one call.

        Args:
            routes: The reference's.
            actual: Expert ids `[B, T, k]` of the backend by number of the layer.
            rows: bool `[B]`, the rows to count. One that differs in a layer is struck, as what
                comes after computes something else; None counts all of them in all layers.
        """
        for route in routes:
            ids = actual[int(route.layer.rsplit(".", 1)[1])]
            real = route.token_mask.numpy()
            if rows is not None:
                real = real & rows[:, None]
            expected = np.sort(route.expert_ids.numpy(), axis=-1)
            differs = (expected != np.sort(ids, axis=-1)).any(axis=-1) & real
            if self.capacity is not None and route.layer.startswith("encoder"):
                real = real & (np.cumsum(differs, axis=1) - differs == 0)
                counted = differs & real
            else:
                counted = differs
            lead = np.where(counted, lead_over(route, ids), route.margin().numpy())
            clear = real & ~(lead <= ROUTE_MARGIN)
            self._count(route.layer, real, clear, counted, lead)
            if rows is not None:
                rows &= ~differs.any(axis=1)

    def layers(self) -> tuple[LayerRoutes, ...]:
        """Return one entry per layer, as they came."""
        return tuple(self._found.values())

    def _count(
        self,
        layer: str,
        real: np.ndarray,
        clear: np.ndarray,
        differs: np.ndarray,
        lead: np.ndarray,
    ) -> None:
        new = LayerRoutes(
            layer,
            clear=int(clear.sum()),
            wrong=int((differs & clear).sum()),
            near_ties=int((real & ~clear).sum()),
            flips=int((differs & real & ~clear).sum()),
            widest=float(lead[differs].max(initial=0.0)),
        )
        self._found[layer] = self._found.get(layer, LayerRoutes(layer)) + new
