"""Lower a bundle's canonical graphs to the form that TensorRT builds engines from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from drl.export.passes import AppendFunctionBodies, QuantizeLinears, TypedPrecision
from drl.export.tensorrt.float32_form import LoweredGraph, LoweringOptions, lower_in_float32
from drl.export.tensorrt.magnitudes import Magnitudes
from drl.export.tensorrt.numeric_gate import HEADROOM, fits, sample_magnitudes
from drl.export.tensorrt.weights_file import externalise
from drl.runtime.bundle import Bundle
from drl.runtime.errors import ExportError

__all__ = ["LoweredGraph", "LoweringOptions", "lower_bundle"]

HALF: Mapping[str, ir.DataType] = {
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}


def lower_bundle(
    bundle: Bundle,
    options: LoweringOptions,
    folder: Path,
    before: Sequence[ir.passes.PassBase] = (),
) -> list[LoweredGraph]:
    """Lower every graph of `bundle` for every path, and write `<name>.onnx` and `weights.bin`.

    Args:
        bundle: An fp32 bundle.
        options: Precision and sizes.
        folder: Where the files go; it must exist.
        before: Passes to run over the canonical graphs first.

    Returns:
        The encoder, then bridge and decoder of every path, cheapest first.

    Raises:
        BundleError: The bundle holds no canonical graphs.
        ExportError: The model does not fit the options.
    """
    graphs = lower_in_float32(bundle, options, before)
    if options.precision == "fp8":
        magnitudes = sample_magnitudes(bundle, options.plugins)
        half = HALF["fp16" if fits(magnitudes, "fp16") else "bf16"]
        for graph in graphs:
            _run(graph.model, [TypedPrecision(half), _quantize(magnitudes, graph.name)])
    else:
        for graph in graphs:
            _run(graph.model, [TypedPrecision(HALF[options.precision])])
    try:
        externalise([graph.model for graph in graphs], folder)
    except OverflowError as error:
        raise ExportError(
            f"{options.precision} cannot hold this model's weights: {error}; build with "
            "--precision bf16, which has the range of fp32"
        ) from None
    for graph in graphs:
        _forget_sizes(graph.model)
        AppendFunctionBodies()(graph.model)
        ir.save(graph.model, folder / f"{graph.name}.onnx")
    return graphs


def _quantize(magnitudes: Magnitudes, name: str) -> QuantizeLinears:
    """Make the pass for one graph; states that come from the encoder have its magnitudes."""
    known = {"encoder_states": magnitudes["encoder"]["encoder_states"]} | dict(magnitudes[name])
    return QuantizeLinears({tensor: HEADROOM * largest for tensor, largest in known.items()})


def _run(model: ir.Model, passes: Sequence[ir.passes.PassBase]) -> None:
    ir.passes.Sequential(*passes)(model)


def _forget_sizes(model: ir.Model) -> None:
    """Leave the shapes of inner values to whoever reads the graph: some have names of their own."""
    told = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value not in told:
                value.shape = None
