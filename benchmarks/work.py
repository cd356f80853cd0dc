"""What a decoder step must read and compute at the least, counted from the decoder's graph."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from drl.benchmarks.cells import Cell
from drl.benchmarks.errors import BenchmarkError
from drl.benchmarks.findings import Work
from drl.runtime.bundle import Bundle

# Operators that read a few rows of a table, and not all of it.
_LOOKUPS = frozenset({"Gather", "GatherElements", "GroupRoute", "GroupQueryAttention"})
_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERTS = ".experts."
_PACKED, _MULTIPLIER = ".packed", ".multiplier"  # of quantised weights; those in blocks have both
_BITS_AXIS = 3  # of packed values with multipliers: its size is the bits of a value


@dataclass(frozen=True)
class Weight:
    """A tensor of the decoder.

    Attributes:
        bytes: Its size.
        elements: The weights in it, padding of packed ones included.
        layer: The decoder layer that it belongs to, or None.
        experts: How many experts are stacked in it; None for what all tokens use.
        is_matrix: Whether tokens are multiplied with it.
        is_quantized: Whether those are products of int8 numbers.
    """

    bytes: int
    elements: int
    layer: int | None
    experts: int | None
    is_matrix: bool
    is_quantized: bool = False


def read_weights(bundle: Bundle) -> list[Weight]:
    """The tensors that a decoder step reads whole, or expert by expert. Reads no values.

    Tables of which a step reads a row per token, such as an untied embedding, are left out.

    Raises:
        BenchmarkError: `onnx` is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise BenchmarkError(
            "counting what a step reads takes onnx, which is not installed; "
            'install it with `pip install "drl[export]"`'
        ) from None
    graph = onnx.load(bundle.graph_file("decoder"), load_external_data=False).graph
    whole = {name for operator, name in _uses(graph) if operator not in _LOOKUPS}
    named = {tensor.name for tensor in graph.initializer}
    return [_weight(tensor, named, onnx) for tensor in graph.initializer if tensor.name in whole]


def count_work(
    bundle: Bundle, weights: list[Weight], cell: Cell, experts_in_use: float | None
) -> Work:
    """The work of an average step of a cell.

    Args:
        bundle: The bundle.
        weights: From `read_weights`.
        cell: What is generated.
        experts_in_use: Different experts that a sparse layer uses in a step, as counted.
    """
    manifest = bundle.manifest
    (path,) = (each for each in manifest.paths if each.name == cell.path)
    used = [each for each in weights if each.layer is None or each.layer in path.layers]
    common = [each for each in used if each.experts is None]
    stacked = [(each, each.experts) for each in used if each.experts is not None]
    in_use = experts_in_use or 0.0
    products = [(each, float(each.elements)) for each in common if each.is_matrix]
    products += [(w, path.experts_per_token * w.elements / e) for w, e in stacked if w.is_matrix]
    state = len(path.layers) * manifest.cache.position_bytes
    kept = math.ceil(round(path.keep_ratio * 1000) * cell.source / 1000)
    return Work(
        weight_bytes=sum(each.bytes for each in common),
        expert_bytes=sum(w.bytes * min(in_use, e) / e for w, e in stacked),
        # The first step reads one position, its own, and the last one as many as tokens are new.
        cache_bytes=state * cell.rows * (1 + cell.new) / 2,
        cross_bytes=state * cell.batch * kept,
        flops=2.0 * cell.rows * sum(n for each, n in products if not each.is_quantized),
        int8_ops=2.0 * cell.rows * sum(n for each, n in products if each.is_quantized),
        experts_in_use=experts_in_use if stacked else None,
    )


def _weight(tensor: Any, named: set[str], onnx: Any) -> Weight:
    """Describe a tensor; `named` are those of the graph."""
    elements = math.prod(tensor.dims)
    stem = tensor.name.removesuffix(_PACKED)
    packed = stem != tensor.name
    external = {entry.key: entry.value for entry in tensor.external_data}
    if "length" in external:
        size = int(external["length"])
    else:
        size = elements * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if packed and stem + _MULTIPLIER in named:
        elements = elements * 8 // tensor.dims[_BITS_AXIS]
    layer = _LAYER.match(tensor.name)
    return Weight(
        bytes=size,
        elements=elements,
        layer=int(layer.group(1)) if layer else None,
        experts=tensor.dims[0] if _EXPERTS in tensor.name else None,
        is_matrix=packed or (len(tensor.dims) >= 2 and not _belongs(tensor.name)),
        is_quantized=packed,
    )


def _belongs(name: str) -> bool:
    """Whether a tensor comes with a packed one."""
    return name.endswith((_MULTIPLIER, ".scale"))


def _uses(graph: Any) -> Iterator[tuple[str, str]]:
    """Every operator and the name of each of its inputs, branches included."""
    for node in graph.node:
        yield from ((node.op_type, name) for name in node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _uses(attribute.g)
