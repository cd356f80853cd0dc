"""One call of a `drl` operator, and the random arrays it is made of."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from drl.plugins.ops import Operator

Array = NDArray[Any]
FLOAT_TYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
# Largest difference, absolute and relative, where results pass through FT arithmetic.
TOLERANCES = {"fp32": 2e-5, "fp16": 8e-3, "bf16": 6e-2}
ROUTING_TOLERANCE = 2e-5


@dataclass(frozen=True)
class Case:
    """One call of an operator, and how far a floating-point result may be from the reference."""

    operator: Operator
    name: str
    inputs: dict[str, Array]
    attributes: dict[str, Any]
    precision: str
    tolerance: float

    def __str__(self) -> str:
        return f"{self.operator.name}-{self.name}-{self.precision}"

    def expected(self) -> dict[str, Array]:
        """The reference's outputs by name."""
        with np.errstate(all="ignore"):  # rows that are not finite are among the cases
            results = self.operator.reference(**self.inputs, **self.attributes)
        outputs = results if isinstance(results, tuple) else (results,)
        names = [argument.name for argument in self.operator.outputs]
        return dict(zip(names, outputs, strict=True))


class Maker:
    """Random arrays of one precision, the same for the same name of a case."""

    def __init__(self, name: str, precision: str) -> None:
        self.random = np.random.default_rng(list(name.encode()))
        self.dtype = FLOAT_TYPES[precision]

    def f32(self, *shape: int, scale: float = 1.0) -> Array:
        return np.asarray(self.random.standard_normal(shape) * scale, np.float32)

    def ft(self, *shape: int, scale: float = 1.0) -> Array:
        return self.f32(*shape, scale=scale).astype(self.dtype)

    def mask(self, lengths: list[int], width: int) -> Array:
        return np.arange(width) < np.array(lengths)[:, None]

    def top_groups(self, log_probs: Array, count: int) -> Array:
        rank = np.argsort(np.argsort(-log_probs, axis=-1, kind="stable"), axis=-1)
        return rank < count
