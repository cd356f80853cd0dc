"""How keys and values lie where graphs hand them to each other: as floats, or rounded."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from drl.export.model import ModelConfig
from drl.export.options import KvCache
from drl.plugins.ops import (
    CACHED_ATTENTION,
    CROSS_ATTENTION,
    QUANTIZED_CACHED_ATTENTION,
    QUANTIZED_CROSS_ATTENTION,
    Operator,
)
from drl.plugins.ops.state_rows import SCALE_BYTES


@dataclass(frozen=True)
class CacheForm:
    """The form of keys and values, and the operators that read it.

    Attributes:
        dtype: Type of an element.
        behind: Elements behind those of a head at one position.
        cached_attention: Extends a cache, and attends to it.
        cross_attention: Attends to encoder states.
    """

    dtype: ir.DataType
    behind: int
    cached_attention: Operator
    cross_attention: Operator

    def row_width(self, config: ModelConfig) -> int:
        """Return the elements of a head at one position."""
        return config.head_dim + self.behind


FP32_CACHE = CacheForm(ir.DataType.FLOAT, 0, CACHED_ATTENTION, CROSS_ATTENTION)
INT8_CACHE = CacheForm(
    ir.DataType.INT8, SCALE_BYTES, QUANTIZED_CACHED_ATTENTION, QUANTIZED_CROSS_ATTENTION
)
CACHE_FORMS: Mapping[KvCache, CacheForm] = MappingProxyType(
    {"fp32": FP32_CACHE, "int8": INT8_CACHE}
)
"""The form that an export is asked for, by its name."""
