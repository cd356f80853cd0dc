"""What a backend may differ by, for each precision that it computes in.

Measured on the configurations of the export tests, whose weights are drawn to be hard (sharp
attention, outputs that outweigh the residual), and on trained and untrained models of other sizes.
u is the unit roundoff: half the distance of two neighbouring numbers, relative.

- fp32: limits of an export. Parts differ by 1e-6 at most.
- fp16, u = 5e-4: parts differ by up to 2.7e-3, logits by 1.6e-2, and experts change where they led
  by up to 7.5e-3. A part rounds what it reads, two or three products and their sum, so its limit is
  10 u; mistakes begin far above that.
- bf16, u = 4e-3, has 3 bits less than fp16: eight times its limits.
- fp8 rounds what products read to 3 bits, u = 6e-2: parts differ by up to 0.16. Logits that are all
  zero differ by 1 and unrelated ones by more, so the limit of logits has to stay well below. Those
  of models drawn to be hard differ by 0.8: such a model is not fit for fp8, and fails.

Logits within a large limit may still say something else, so predictions decide too. Where the
likeliest token leads by a probability of 0.1, its logit leads by 0.2 or more. In fp32 no rounding
makes up for that, and in fp16 only that of logits of a magnitude above 3. Limits of bf16 and
fp8 are as large as the lead, but few positions have the least lead and the largest error together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from drl.export.parity import TOLERANCE
from drl.export.routes import ROUTE_MARGIN


@dataclass(frozen=True)
class Limits:
    """Largest differences that are rounding and no mistake.

    Attributes:
        logits: Of a logit or path logit: absolute up to a magnitude of 1, beyond it relative to
            the largest logit.
        margin: Of the lead that experts chosen had over the first one left out, where they differ.
        states: Of what one part of the model makes of the states that it read, relative likewise.
        same: The share, at least, of clear predictions that are the reference's.
    """

    logits: float
    margin: float
    states: float
    same: float

    @property
    def kept(self) -> float:
        """Of the lead of a saliency where other states are kept: two may differ by a limit each."""
        return 2 * self.logits


LIMITS: Mapping[str, Limits] = MappingProxyType(
    {
        "fp32": Limits(logits=TOLERANCE, margin=ROUTE_MARGIN, states=1e-5, same=1.0),
        "fp16": Limits(logits=3e-2, margin=2e-2, states=5e-3, same=0.99),
        "bf16": Limits(logits=0.24, margin=0.16, states=4e-2, same=0.95),
        "fp8": Limits(logits=0.5, margin=0.4, states=0.2, same=0.8),
    }
)
