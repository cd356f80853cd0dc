"""Times of what runs on a GPU, between CUDA events."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

REPEATS = 20


def median_seconds(
    cupy: Any, actions: Sequence[Callable[[], Any]], repeats: int = REPEATS
) -> float:
    """Median time of one action on the device, the actions taken in turn.

    Actions over distinct memory keep the second-level cache from serving what memory should. All of
    a round are captured in a CUDA graph, which is launched between two events: kernels of a few
    microseconds end sooner than Python launches the next.
    """
    times = []
    cupy.cuda.Device().synchronize()  # what made the memory runs on another stream
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for action in actions:
            action()  # compiles, which nothing may do while a stream is captured
        stream.synchronize()
        stream.begin_capture()
        for action in actions:
            action()
        graph = stream.end_capture()
        for _ in range(repeats):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record(stream)
            graph.launch(stream)
            end.record(stream)
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3 / len(actions))
    median: float = statistics.median(times)
    return median


def memory_bandwidth(cupy: Any, size: int = 1 << 30) -> float:
    """Bytes per second of a copy within the device's memory, read and written bytes together."""
    source, target = cupy.zeros(size, cupy.uint8), cupy.empty(size, cupy.uint8)

    def copy() -> None:
        cupy.cuda.runtime.memcpyAsync(
            target.data.ptr, source.data.ptr, size, 3, cupy.cuda.get_current_stream().ptr
        )  # 3: from device to device

    bandwidth: float = 2 * size / median_seconds(cupy, [copy])
    return bandwidth
