"""How large the tensors of lowered graphs become: found by running them in float32."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript

from drl.export.passes import AppendFunctionBodies, TypedPrecision
from drl.export.passes.tracing import trace_after
from drl.export.tensorrt.sample_run import Array, Graph, open_graph, run_sample
from drl.runtime.manifest import Manifest

Magnitudes = Mapping[str, Mapping[str, float]]
"""By name of the graph: the largest magnitude of every value that half precision would hold."""

_LARGEST = "largest_magnitudes"


def measure(
    graphs: Mapping[str, ir.Model], manifest: Manifest, folder: Path, capacity: int
) -> Magnitudes:
    """Run the graphs on sample inputs, and note how far each of their values goes.

    Args:
        graphs: The lowered graphs in float32 by name; they stay as they are.
        manifest: Of the bundle.
        folder: Where the weights file of the graphs lies.
        capacity: C, of the decoders' caches.
    """
    found: dict[str, dict[str, float]] = {}

    def open_watched(name: str) -> Graph:
        watched = _watched(graphs[name])
        run = open_graph(_with_magnitudes(graphs[name], watched), folder)
        largest = found[name] = dict.fromkeys(watched, 0.0)

        def note(feeds: Mapping[str, Array]) -> dict[str, Array]:
            outputs = run(feeds)
            magnitudes = outputs.pop(_LARGEST).tolist()
            for tensor, magnitude in zip(watched, magnitudes, strict=True):
                largest[tensor] = float(np.fmax(largest[tensor], magnitude))
            return outputs

        return note

    run_sample(open_watched, manifest, capacity)
    return found


def _watched(model: ir.Model) -> Sequence[str]:
    """The computed values of a float32 graph that half precision would hold."""
    own = {value.name for node in model.graph for value in node.outputs}
    typed = model.clone()
    TypedPrecision(ir.DataType.FLOAT16)(typed)
    halves = {
        re.sub(r"\.float16$", "", value.name or "")
        for node in typed.graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT16
    }
    return sorted(name for name in halves if name in own)


def _with_magnitudes(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that also gives the largest magnitude of each of the named values, fp32 `[n]`."""
    probe = model.clone()
    graph = probe.graph
    values = {value.name: value for node in graph for value in node.outputs}

    def trace(op: onnxscript.OpBuilder) -> Any:
        largest = (op.ReduceMax(op.Abs(values[name]), keepdims=0) for name in names)
        return op.Concat(*(op.Reshape(each, [1]) for each in largest), axis=0)

    _, (magnitudes,) = trace_after(graph[-1].outputs[0], trace, _LARGEST)
    magnitudes.name = _LARGEST
    graph.outputs.append(magnitudes)
    AppendFunctionBodies()(probe)
    return probe
