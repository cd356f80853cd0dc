"""What this machine can do at best: `python -m drl.benchmarks.floor THREADS` prints it as JSON."""

import functools
import json
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from drl.benchmarks.findings import Floor
from drl.benchmarks.subprocesses import run_module
from drl.runtime import machine

_MOST_BYTES = 1 << 30
_PASSES = 7
_SIZES = (512, 2048, 2048)  # of the matrix product: rows, inner dimension, columns
_OPSET, _IR_VERSION = 21, 10


def measure_floor(threads: int) -> Floor:
    """Measure in a process of its own, with `threads` threads.

    Raises:
        BenchmarkError: The process failed.
    """
    return Floor(**run_module("drl.benchmarks.floor", [threads], threads))


def read_bandwidth(threads: int, size: int, passes: int = _PASSES) -> float:
    """Bytes per second that `threads` threads read from memory together: the best of some passes.

    Each thread takes the largest of its own part's int64 numbers, which NumPy does with vector
    instructions and faster than memory delivers.

    Args:
        threads: How many.
        size: Bytes read per pass; far more than the caches hold.
        passes: How often.
    """
    parts = [np.arange(size // threads // 8, dtype=np.int64) for _ in range(threads)]

    def read_all() -> None:
        workers = [threading.Thread(target=np.max, args=(part,)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return sum(part.nbytes for part in parts) / _best(read_all, passes)


def matmul_flops(threads: int, sizes: tuple[int, int, int] = _SIZES) -> tuple[float, str]:
    """Floating-point operations per second of a large fp32 matrix product, and who did it.

    By ONNX Runtime, with one factor a weight as in a model, where `onnx` is there to describe it;
    else by NumPy, which may be slower than the backend that is held against it.
    """
    rows, inner, columns = sizes
    random = np.random.default_rng(0)
    left = random.standard_normal((rows, inner), dtype=np.float32)
    right = random.standard_normal((inner, columns), dtype=np.float32)
    session = _session("MatMul", right, threads)
    product: Callable[[], object] = functools.partial(np.matmul, left, right)
    who = f"NumPy {np.__version__}"
    if session is not None:
        product, who = functools.partial(session.run, None, {"x": left}), "ONNX Runtime"
    product()
    return 2.0 * rows * inner * columns / _best(product, 4 * _PASSES), who


def int8_ops(threads: int, sizes: tuple[int, int, int] = _SIZES) -> float:
    """Operations per second of a large product of int8 matrices by ONNX Runtime; 0 without it."""
    rows, inner, columns = sizes
    random = np.random.default_rng(0)
    left = random.integers(0, 255, (rows, inner), np.uint8)
    session = _session(
        "MatMulInteger", random.integers(-127, 127, (inner, columns), np.int8), threads
    )
    if session is None:
        return 0.0
    product = functools.partial(session.run, None, {"x": left})
    product()
    return 2.0 * rows * inner * columns / _best(product, 4 * _PASSES)


def _session(operator: str, weight: Any, threads: int) -> Any:
    """A session of `x @ weight`, or None without the libraries for it."""
    try:
        onnx: Any = import_module("onnx")
        onnxruntime: Any = import_module("onnxruntime")
    except ModuleNotFoundError:
        return None
    inner, columns = weight.shape
    kinds = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT
    if operator == "MatMulInteger":
        kinds = onnx.TensorProto.UINT8, onnx.TensorProto.INT32
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", kinds[0], [None, inner])],
        [onnx.helper.make_tensor_value_info("y", kinds[1], [None, columns])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = [onnx.helper.make_opsetid("", _OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _best(work: Callable[[], object], passes: int) -> float:
    """Seconds of the fastest of some passes."""
    seconds = []
    for _ in range(passes):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main(threads: int) -> None:
    """Print the floor of this machine."""
    memory = machine.memory()
    size = min(_MOST_BYTES, memory[1] // 4) if memory else _MOST_BYTES
    bandwidth = read_bandwidth(threads, size)
    flops, who = matmul_flops(threads)
    rows, inner, columns = _SIZES
    how = (
        f"best of several passes with {threads} threads: {size / 1e6:.0f} MB read by NumPy, and "
        f"products {rows}x{inner} by {inner}x{columns} in {who}"
    )
    floor = {"bytes_per_second": bandwidth, "flops_per_second": flops}
    print(json.dumps(floor | {"int8_ops_per_second": int8_ops(threads), "how": how}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
