"""Time of one linear in ONNX Runtime: our kernels beside what ONNX Runtime brings itself.

`python -m drl.benchmarks.linear_time` needs the extras `cpu` and `export`, and the native library.
A graph holds many linears with weights of their own, more than the caches hold: a buffer that is
read again and again would flatter every engine. All engines take turns, one run each, and the best
run counts, since other work on the machine can only add to it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from drl.plugins.native import find_library
from drl.plugins.ops.packing import LAYOUT, PackedWeights, pack_int4, pack_int8, pack_int8_block
from drl.runtime.backends.ort_session import import_onnxruntime
from drl.runtime.commands.common import clean_errors, table

Array = NDArray[Any]
SHAPES = ((512, 512), (512, 2048), (2048, 512), (512, 32128))
"""Depth and output channels: the linears of a T5-small and its head."""
WEIGHTS = 128_000_000
"""Weights of one graph; as int8 several times what the caches of a small server hold."""
_BLOCKS = {8: 128, 4: 32}
"""Bits to the depth of a block of MatMulNBits."""


@dataclass(frozen=True)
class Node:
    """The node of a linear: `operator(x, *constants)`, where None is an input left out."""

    domain: str
    operator: str
    constants: tuple[Array | None, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class LinearTime:
    """Milliseconds of one linear, the best of all runs."""

    engine: str
    threads: int
    depth: int
    columns: int
    rows: int
    best: float


def _quantize(weight: Array, axis: int, most: int = 127) -> tuple[Array, Array]:
    scale = np.abs(weight).max(axis=axis, keepdims=True) / np.float32(most)
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)


def _native(weight: Array, pack: Callable[[Array], PackedWeights]) -> Node:
    packed = pack(weight)
    attributes = {"columns": packed.columns, "activation": "none", "epsilon": 0.0, "layout": LAYOUT}
    constants = (packed.values, packed.scales, packed.multipliers)
    return Node("drl", "QuantizedLinear", constants, attributes)


def _dynamic(weight: Array) -> Node:
    values, scale = _quantize(weight, 1)
    constants = (np.ascontiguousarray(values.T), scale[:, 0])
    return Node("com.microsoft", "DynamicQuantizeMatMul", constants, {})


def _blocks(weight: Array, bits: int) -> Node:
    columns, depth = weight.shape
    block, most = _BLOCKS[bits], 2 ** (bits - 1) - 1
    values, scale = _quantize(weight.reshape(columns, depth // block, block), 2, most)
    stored = (values.astype(np.int16) + most + 1).astype(np.uint8)
    if bits == 4:
        stored = stored[..., ::2] | stored[..., 1::2] << 4
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    return Node("com.microsoft", "MatMulNBits", (stored, scale.reshape(-1)), attributes)


def _float(weight: Array) -> Node:
    return Node("", "MatMul", (np.ascontiguousarray(weight.T),), {})


ENGINES: dict[str, Callable[[Array], Node]] = {
    "drl int8": partial(_native, pack=pack_int8),
    "drl int8-block": partial(_native, pack=pack_int8_block),
    "drl int4": partial(_native, pack=pack_int4),
    "DynamicQuantizeMatMul": _dynamic,
    "MatMulNBits 8-bit": partial(_blocks, bits=8),
    "MatMulNBits 4-bit": partial(_blocks, bits=4),
    "MatMul fp32": _float,
}
"""Engine to the node of a weight `[N, K]`."""


def _model(engine: str, depth: int, columns: int, count: int) -> onnx.ModelProto:
    """`count` linears with weights of their own over one input."""
    generator = np.random.default_rng(0)
    nodes, constants = [], []
    for index in range(count):
        weight = generator.standard_normal((columns, depth), np.float32)
        node = ENGINES[engine](weight)
        names = ["x"]
        for place, array in enumerate(node.constants):
            names.append("" if array is None else f"{index}.{place}")
            if array is not None:
                constants.append(numpy_helper.from_array(array, names[-1]))
        output = [f"y{index}"]
        attributes = {"domain": node.domain, **node.attributes}
        nodes.append(helper.make_node(node.operator, names, output, **attributes))
    outputs = [f"y{index}" for index in range(count)]
    graph = helper.make_graph(
        nodes,
        "linears",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "M", depth])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, "M", columns]) for y in outputs],
        constants,
    )
    opsets = [helper.make_opsetid(*pair) for pair in (("", 21), ("drl", 1), ("com.microsoft", 1))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _session(model: bytes, threads: int) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # As in the runtime; and spinning threads of one engine would take cores from the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    library = find_library()
    if library.path is None:
        raise click.ClickException(library.missing)
    options.register_custom_ops_library(str(library.path))
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(model, options, providers=providers)


def measure(
    depth: int,
    columns: int,
    rows: tuple[int, ...],
    threads: tuple[int, ...],
    repeats: int,
    weights: int = WEIGHTS,
) -> Iterator[LinearTime]:
    """Time the linears of one shape with every engine, number of threads and number of rows."""
    count = max(2, weights // (depth * columns))
    sessions: dict[tuple[str, int], Any] = {}
    for engine in ENGINES:
        model = _model(engine, depth, columns, count).SerializeToString()
        sessions |= {(engine, number): _session(model, number) for number in threads}
    for height in rows:
        x = np.random.default_rng(0).standard_normal((1, height, depth), np.float32)
        best = dict.fromkeys(sessions, float("inf"))
        for _ in range(repeats):
            for key, session in sessions.items():
                started = time.perf_counter()
                session.run(["y0"], {"x": x})
                best[key] = min(best[key], 1e3 * (time.perf_counter() - started) / count)
        for (engine, number), found in best.items():
            yield LinearTime(engine, number, depth, columns, height, found)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", type=click.IntRange(1), multiple=True, default=(1, 8, 32))
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2))
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True)
@clean_errors
def main(rows: tuple[int, ...], threads: tuple[int, ...], repeats: int) -> None:
    """Time linears of decoder steps with int8, int4 and fp32 engines; ms of one, best run."""
    for depth, columns in SHAPES:
        times = list(measure(depth, columns, rows, threads, repeats))
        lines = [[f"{depth}x{columns}", "threads", *(f"M={height}" for height in rows)]]
        for engine in ENGINES:
            for number in threads:
                found = [t.best for t in times if (t.engine, t.threads) == (engine, number)]
                lines.append([engine, str(number), *(f"{best:.4f}" for best in found)])
        click.echo(table(lines, right=tuple(range(1, 2 + len(rows)))))
        click.echo()


if __name__ == "__main__":
    main()
