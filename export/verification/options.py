"""What a verification can be asked for; light to import, so that the command answers at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BACKENDS = ("ort-cpu", "portable", "tensorrt-form", "ort-cuda", "tensorrt", "tensorrt-rtx")
"""What can be compared, in the order in which it is."""

AVAILABLE = "available"
PRECISIONS = ("fp32", "fp16", "bf16", "fp8")


@dataclass(frozen=True)
class VerifyOptions:
    """What to compare.

    Attributes:
        backends: Names of `BACKENDS`; none for all that are available here.
        checkpoint: The checkpoint that the bundle was made from. Without it the reference has the
            weights that lie in the bundle.
        force_routes: Whether to compare once more with the reference's routes.
        layers: Whether to compare part by part.
        batch: Sources.
        source: Tokens of the longest source, cut to what the model takes; the others are shorter,
            down to one.
        steps: Cached single-token steps after the first call.
        seed: Of the random inputs.
        tolerances: By precision, the largest difference of a logit in the place of the usual one.
    """

    backends: tuple[str, ...] = ()
    checkpoint: Path | None = None
    force_routes: bool = False
    layers: bool = False
    batch: int = 4
    source: int = 24
    steps: int = 32
    seed: int = 20
    tolerances: Mapping[str, float] = field(default_factory=dict)
