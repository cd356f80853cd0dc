"""What a backend may differ by, for each precision that it computes in."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from drl.export.parity import ROUTE_MARGIN, TOLERANCE


@dataclass(frozen=True)
class Limits:
    """Largest differences that are rounding and no mistake.

    Attributes:
        logits: Of a logit or path logit: absolute up to a magnitude of 1, beyond it relative to
            the largest logit.
        margin: Of the lead that experts chosen had over the first one left out, where they differ.
        states: Of what one layer adds to the states that it read, relative likewise.
    """

    logits: float
    margin: float
    states: float


FP32 = Limits(logits=TOLERANCE, margin=ROUTE_MARGIN, states=1e-5)

LIMITS: Mapping[str, Limits] = MappingProxyType(
    {
        "fp32": FP32,
        "fp16": Limits(logits=5e-2, margin=2e-2, states=1e-2),
        "bf16": Limits(logits=0.3, margin=0.15, states=8e-2),
        "fp8": Limits(logits=0.5, margin=0.3, states=0.2),
    }
)
