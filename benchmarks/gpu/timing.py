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
    a round are queued between two events, so the host's launches are not what is timed as long as
    the device is the slower one.
    """
    for action in actions:
        action()
    stream = cupy.cuda.get_current_stream()
    stream.synchronize()
    times = []
    for _ in range(repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        for action in actions:
            action()
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
