"""The kernels of every instruction set that this machine has."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from drl.plugins.native import Kernels, NativeLibraryError, find_library
from drl.plugins.native.kernels import ParallelFor

INSTRUCTION_SETS = ("scalar", "avx2", "avx512vnni")

needs_library = pytest.mark.skipif(
    find_library().path is None, reason=f"not tested: {find_library().missing}"
)


def available(isa: str, parallel_for: ParallelFor | None = None) -> Kernels | None:
    """The kernels of one instruction set, or None where the processor lacks it."""
    try:
        return Kernels(isa, parallel_for)
    except NativeLibraryError as error:
        if "processor lacks" not in str(error):
            raise
        return None


def kernels(isa: str, parallel_for: ParallelFor | None = None) -> Kernels:
    """The kernels of one instruction set; the test is skipped where the processor lacks it."""
    found = available(isa, parallel_for)
    if found is None:
        pytest.skip(f"not tested: this processor lacks {isa}")
    return found


def all_kernels() -> dict[str, Kernels]:
    """The kernels of every instruction set that the processor has."""
    every = ((isa, available(isa)) for isa in INSTRUCTION_SETS)
    return {isa: found for isa, found in every if found is not None}


def backwards(count: int, task: Callable[[int], None]) -> None:
    """Tasks in reverse: none may rely on an earlier one."""
    for index in reversed(range(count)):
        task(index)


def on_threads(count: int, task: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(task, range(count)))
