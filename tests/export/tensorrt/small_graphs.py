"""Graphs of a few nodes that stand for lowered ones: they build in tenths of a second."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from drl.export.tensorrt.lowering import LoweredGraph, LoweringOptions
from drl.runtime.bundle import Bundle

WIDTH = 8
Dim = int | str


def tensor(name: str, shape: Sequence[Dim]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT16, list(shape))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model in fp16, whose weights lie in it."""
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), tensors)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("drl", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=list(functions))


def linear(operator: str = "Relu", seed: int = 0, *, domain: str = "") -> onnx.ModelProto:
    """`x` `[B, S, 8]` times a matrix, then an operator, in the layer `encoder/layers.0`."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="encoder/layers.0/MatMul"),
        helper.make_node(operator, ["y"], ["z"], name="encoder/layers.0/act", domain=domain),
    ]
    shape = ("B", "S", WIDTH)
    return model(nodes, [tensor("x", shape)], [tensor("z", shape)], {"w": weight(seed)})


def weight(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH))
    return values.astype(np.float16)


def deep(layers: int) -> onnx.ModelProto:
    """Many different layers, which take seconds to build."""
    nodes, weights = [], {}
    for i in range(layers):
        width = WIDTH + 8 * (i + 1)
        before = WIDTH + 8 * i
        values = np.random.default_rng(i).standard_normal((before, width)) / 8
        weights[f"w{i}"] = values.astype(np.float16)
        source = "x" if i == 0 else f"s{i - 1}"
        nodes.append(helper.make_node("MatMul", [source, f"w{i}"], [f"y{i}"], name=f"l{i}/MatMul"))
        nodes.append(helper.make_node("Softmax", [f"y{i}"], [f"s{i}"], name=f"l{i}/Softmax"))
    last = (WIDTH + 8 * layers,)
    return model(
        nodes,
        [tensor("x", ("B", "S", WIDTH))],
        [tensor(f"s{layers - 1}", ("B", "S", *last))],
        weights,
    )


def decoder(capacity: int, candidates: int, seed: int) -> onnx.ModelProto:
    """`tokens` `[B, T, 8]`, `cross` `[R, K, 8]` and a cache: every named dimension of a decoder."""
    nodes = [
        helper.make_node("MatMul", ["tokens", "w"], ["logits"], name="decoder/layers.0/MatMul"),
        helper.make_node("Relu", ["cross"], ["seen"], name="decoder/layers.0/Relu"),
        helper.make_node("Neg", ["past"], ["present"], name="decoder/layers.0/Neg"),
        helper.make_node("Slice", ["logits", "zero", "count", "last"], ["top"], name="Slice"),
    ]
    inputs = {"tokens": ("B", "T", WIDTH), "cross": ("R", "K", WIDTH), "past": ("B", capacity)}
    outputs = {"logits": ("B", "T", WIDTH), "seen": ("R", "K", WIDTH), "present": ("B", capacity)}
    outputs["top"] = ("B", "T", min(candidates, WIDTH))
    weights = {"w": weight(seed), "zero": np.array([0]), "last": np.array([2])}
    weights["count"] = np.array([min(candidates, WIDTH)])
    return model(
        nodes,
        [tensor(*item) for item in inputs.items()],
        [tensor(*item) for item in outputs.items()],
        weights,
    )


def lower_small(
    bundle: Bundle, options: LoweringOptions, folder: Path, before: object = ()
) -> list[LoweredGraph]:
    """Stands for `lower_bundle`: as many graphs, of a few nodes each."""
    half = np.float16 if options.precision == "fp16" else np.float32
    graphs: list[tuple[str, onnx.ModelProto, int | None]] = [("encoder", linear("Relu"), None)]
    for index, path in enumerate(bundle.manifest.paths):
        seed = len(path.layers) + (half is np.float32) * 100
        graphs.append((f"bridge.{path.name}", linear("Neg", seed), index))
        capacity = options.capacity or bundle.manifest.limits.max_target_length
        made = decoder(capacity, options.candidates, seed)
        graphs.append((f"decoder.{path.name}", made, index))
    lowered = []
    for name, proto, index in graphs:
        onnx.save(proto, folder / f"{name}.onnx")
        lowered.append(LoweredGraph(name, ir.from_proto(proto), index))
    return lowered
