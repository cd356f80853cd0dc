"""Refuse a precision whose range a model leaves."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from drl.export.tensorrt.float32_form import LoweringOptions, lower_in_float32
from drl.export.tensorrt.magnitudes import Magnitudes, measure
from drl.runtime.bundle import Bundle
from drl.runtime.errors import ExportError

HEADROOM = 2.0
"""By how much the range must exceed what samples reach: other inputs reach further."""

_CAPACITY = 32
"""Enough for what samples decode; a cache of the model's own length only takes time."""
_LARGEST: Mapping[str, float] = {"fp16": float(np.finfo(np.float16).max)}


def can_overflow(precision: str) -> bool:
    """Whether a precision has a smaller range than float32, and `check_precision` looks at it.

    fp8 has scales for what it rounds, and takes bf16 for the rest where fp16 would overflow.
    """
    return precision in _LARGEST


def check_precision(bundle: Bundle, precision: str) -> None:
    """Run the lowered graphs in float32 on sample inputs, and see whether all values fit.

    The inputs are random tokens and what the model makes of them, greedily; they are the same at
    every call. `bf16` has the range of float32, and so nothing needs to run for it.

    Args:
        bundle: An fp32 bundle.
        precision: As in `LoweringOptions`.

    Raises:
        BundleError: The bundle holds no canonical graphs.
        ExportError: A tensor leaves the range of the precision; names the one that goes furthest,
            its layer, and the way out.
    """
    if not can_overflow(precision):
        return
    graphs = _small_graphs(bundle, plugins=False)
    check_range(
        measure(graphs, bundle.manifest, bundle.folder, _capacity(bundle)), graphs, precision
    )


def sample_magnitudes(bundle: Bundle, plugins: bool) -> Magnitudes:
    """Find how far the values of a bundle's lowered graphs go, on sample inputs.

    Raises:
        BundleError: The bundle holds no canonical graphs.
    """
    graphs = _small_graphs(bundle, plugins)
    return measure(graphs, bundle.manifest, bundle.folder, _capacity(bundle))


def fits(magnitudes: Magnitudes, precision: str) -> bool:
    """Whether all values lie well within the range of `precision`."""
    return not _overflows(magnitudes, precision)


def _small_graphs(bundle: Bundle, plugins: bool) -> dict[str, ir.Model]:
    options = LoweringOptions(capacity=_capacity(bundle), plugins=plugins)
    return {graph.name: graph.model for graph in lower_in_float32(bundle, options)}


def _capacity(bundle: Bundle) -> int:
    return min(_CAPACITY, bundle.manifest.limits.max_target_length)


def check_range(magnitudes: Magnitudes, graphs: Mapping[str, ir.Model], precision: str) -> None:
    """Refuse `precision` if a tensor leaves its range, or comes near to that.

    Args:
        magnitudes: Of the values of all graphs.
        graphs: The lowered graphs in float32 by name.
        precision: One of narrower range than float32.

    Raises:
        ExportError: See `check_precision`.
    """
    overflows = _overflows(magnitudes, precision)
    if not overflows:
        return
    limit = _LARGEST[precision]
    magnitude, graph, tensor = max(overflows)
    others = f", and {len(overflows) - 1} other tensors go too far" if overflows[1:] else ""
    raise ExportError(
        f"{precision} cannot hold this model: {_describe(graphs[graph], tensor)} of graph {graph} "
        f"reaches {magnitude:.3g} on sample inputs, where {precision} ends at {limit:.3g} and half "
        f"of that is kept for other inputs{others}; build with --precision bf16, which has the "
        "range of fp32"
    )


def _overflows(magnitudes: Magnitudes, precision: str) -> list[tuple[float, str, str]]:
    """The tensors that go too far: how far, their graph, their name."""
    limit = _LARGEST.get(precision, np.inf)
    return [
        (magnitude, graph, tensor)
        for graph, tensors in magnitudes.items()
        for tensor, magnitude in tensors.items()
        if magnitude * HEADROOM > limit
    ]


def _describe(model: ir.Model, tensor: str) -> str:
    """Name a value by the operator and the layer that it comes from."""
    node = next(node for node in model.graph if tensor in [value.name for value in node.outputs])
    module = node.metadata_props.get("namespace", "").replace("/", ".")
    return f"the output of {node.op_type} in {module}" if module else f"tensor {tensor}"
