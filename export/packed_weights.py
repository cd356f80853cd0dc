"""Packed weights: which format a precision gives the matrices, and how they are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from drl.export.checkpoint import Checkpoint
from drl.export.model import ModelConfig
from drl.export.options import KvCache, Precision
from drl.export.weights import Maker
from drl.plugins.ops.packing import (
    Format,
    PackedWeights,
    pack_int4,
    pack_int8,
    pack_int8_block,
)

_PACK: Mapping[Format, Callable[[np.ndarray], PackedWeights]] = MappingProxyType(
    {"int8": pack_int8, "int8-block": pack_int8_block, "int4": pack_int4}
)


@dataclass(frozen=True)
class Formats:
    """The formats of a quantised precision.

    Norms, biases, routers and tables of positions and groups are fp32 in all of them.

    Attributes:
        layers: Of the matrices in the layers of both stacks, experts included.
        head: Of the head.
        kv_cache: Of the keys and values that the decoder's attention reads.
    """

    layers: Format
    head: Format
    kv_cache: KvCache = "fp32"

    def packs_embedding(self, config: ModelConfig, table: str) -> bool:
        """Whether the embedding `table` is read from the head's packed weights.

        It is where the head is tied to it, and has 8 bits.
        """
        return config.tie_embeddings and table == config.target_embedding and self.head != "int4"


FORMATS: Mapping[Precision, Formats] = MappingProxyType(
    {
        "int8": Formats("int8", "int8"),
        "int8-block": Formats("int8-block", "int8-block"),
        "int4": Formats("int4", "int4"),
        "int4+int8-head": Formats("int4", "int8"),
    }
)
"""The formats of every precision but fp32, with keys and values of fp32."""


def formats_of(precision: Precision, kv_cache: KvCache) -> Formats:
    """Return the formats of a quantised precision and a cache."""
    return replace(FORMATS[precision], kv_cache=kv_cache)


def pack(format: Format, weight: Tensor) -> PackedWeights:
    """Pack a weight `[N, K]` or `[M, N, K]`."""
    return _PACK[format](weight.detach().numpy())


class PackedParts:
    """The parts of one packed tensor, which become tensors of the weights file each.

    The first part that is asked for packs the weight; a part is let go of when it is handed out.
    They stand side by side in the file, so no two packed tensors are in memory at a time.
    """

    def __init__(self, format: Format, source: Maker) -> None:
        self._format = format
        self._source = source
        self._parts: dict[str, Tensor] = {}

    def maker(self, part: str) -> Maker:
        """Return what makes the part `packed`, `scale` or `multiplier`."""

        def make(checkpoint: Checkpoint) -> Tensor:
            if part not in self._parts:
                self._parts = _parts(pack(self._format, self._source(checkpoint)))
            return self._parts.pop(part)

        return make


def _parts(packed: PackedWeights) -> dict[str, Tensor]:
    arrays = {"packed": packed.values, "scale": packed.scales}
    if packed.multipliers is not None:
        arrays["multiplier"] = packed.multipliers
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
