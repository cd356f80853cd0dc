"""What processor this process may use: cores, quota, instruction sets, memory."""

import contextlib
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Steps of a small decoder hardly gain beyond this many threads, and lose when cores are shared.
_MOST_DEFAULT_THREADS = 8
_INSTRUCTION_SETS = (
    "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve", "bf16",
)  # fmt: skip


def default_threads() -> int:
    """Threads for one engine: a thread per physical core of this process, within its quota.

    The second hardware thread of a core adds nothing to matrix products, a container's CPU quota
    stops threads in mid-step once it is used up, and a pinned process has only its own cores.
    """
    threads = min(physical_cores(), _MOST_DEFAULT_THREADS)
    quota = cpu_quota()
    return max(1, min(threads, int(quota)) if quota else threads)


def available_cpus() -> frozenset[int]:
    """Numbers of the logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """How many cores the available logical processors belong to."""
    cpus = available_cpus()
    siblings = set()
    for cpu in cpus:
        shared = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(shared or str(cpu))
    return len(siblings)


def cpu_quota() -> float | None:
    """How many processors the container's quota allows for, or None without a quota (Linux)."""
    limit = _read("/sys/fs/cgroup/cpu.max").split()
    if len(limit) == 2 and limit[0].isdigit():
        return int(limit[0]) / int(limit[1])
    quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        return int(quota) / int(period)
    return None


def share_of_cores(threads: int, seconds: float = 0.01) -> float:
    """What part of its time a busy thread spends on a processor beside others, measured now.

    It is near 1 where as many cores are free, and less where other threads want one of them, of
    this process or of others.

    Args:
        threads: How many are busy; the least share of them counts.
        seconds: For how long.
    """
    cpus = sorted(available_cpus())
    if threads > len(cpus):
        return len(cpus) / threads
    shares = []
    together = threading.Barrier(threads)

    def work(cpu: int) -> None:
        # NumPy lets go of the interpreter while it reads, long enough for the others to run.
        block = np.zeros(1 << 19, np.int64)
        # A thread begins on its parent's processor, and may stay there for longer than this takes.
        with _pinned(cpu):
            together.wait()
            began, used = time.perf_counter(), time.thread_time()
            while time.perf_counter() < began + seconds:
                block.max()
            used = time.thread_time() - used
            shares.append(used / (time.perf_counter() - began))

    others = [threading.Thread(target=work, args=(cpu,)) for cpu in cpus[1:threads]]
    for other in others:
        other.start()
    work(cpus[0])
    for other in others:
        other.join()
    return min(shares)


@contextlib.contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    """Keep this thread on one processor, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    with contextlib.suppress(PermissionError):  # some sandboxes leave it to the system
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        if os.sched_getaffinity(0) != before:
            os.sched_setaffinity(0, before)


def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match.group(1) if match else platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """The vector instruction sets that matter to inference, of those the processor has (Linux)."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    present = set(match.group(1).split()) if match else set()
    return [name for name in _INSTRUCTION_SETS if name in present]


def memory() -> tuple[int, int] | None:
    """Bytes of memory in the machine and available to new processes, or None if unknown."""
    text = _read("/proc/meminfo")
    total = re.search(r"^MemTotal:\s+(\d+) kB", text, re.MULTILINE)
    available = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    if total is None or available is None:
        return None
    return int(total.group(1)) * 1024, int(available.group(1)) * 1024


def _read(path: str) -> str:
    """The text of a small system file, or nothing where the system has no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
