"""Runs the kernels on the host: their sources, compiled as C++ over an emulated block of threads.

What is emulated: barriers, shuffles, shared memory (filled with rubbish before each block), the
tensor cores' instruction with the operands of every lane in its place, and the order in which
threads get on, which a seed shuffles. Each array ends at a page that nothing may touch. What is
not: rounding inside the tensor cores, the PTX of `device.cuh`, and time.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from drl.plugins.cuda.calls import Call
from drl.plugins.cuda.kernels import KernelSource
from drl.plugins.cuda.tiling import BLOCK
from tests.plugins.ops.case import Array

EMULATION = Path(__file__).parent / "emulation"
SOURCES = Path(__file__).parents[3] / "plugins" / "cuda" / "src"
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC")
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
_DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


class EmulationError(AssertionError):
    """A kernel did what a GPU would not forgive."""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="drl-emulation-")


@functools.cache
def _machine() -> Path:
    """The machine is the same for all kernels and compiled once."""
    path = Path(_folder().name) / "machine.o"
    source = EMULATION / "machine.cpp"
    subprocess.run([COMPILER, *FLAGS, "-Wno-clobbered", "-c", "-o", path, source], check=True)
    return path


@functools.cache
def _library(source: KernelSource) -> ctypes.CDLL:
    path = Path(_folder().name) / f"{source.entry}-{len(list(Path(_folder().name).iterdir()))}.so"
    defines = [f"-D{name}={value}" for name, value in source.defines]
    names = [f'-DDRL_SOURCE="{source.file}"', f"-DDRL_KERNEL={source.entry}", "-DDRL_HOST"]
    folders = [f"-I{EMULATION}", f"-I{SOURCES}"]
    parts = [EMULATION / "kernel.cpp", _machine()]
    told = [*defines, *names, *folders]
    subprocess.run([COMPILER, *FLAGS, "-shared", *told, "-o", path, *parts], check=True)
    library = ctypes.CDLL(str(path))
    library.drl_launch.restype = ctypes.c_char_p
    library.drl_guarded.restype = ctypes.c_void_p
    library.drl_guarded.argtypes = [ctypes.c_size_t, ctypes.c_int]
    library.drl_release.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


class _Guarded:
    """Copies of arrays that end where memory ends."""

    def __init__(self, library: ctypes.CDLL, *, aligned: bool) -> None:
        self._library, self._aligned = library, aligned
        self._blocks: list[tuple[int, int]] = []

    def copy(self, array: Array) -> tuple[int, Array]:
        address = self._library.drl_guarded(array.nbytes, int(self._aligned))
        self._blocks.append((address, array.nbytes))
        raw = (ctypes.c_char * array.nbytes).from_address(address)
        own = np.frombuffer(raw, array.dtype).reshape(array.shape)
        own[...] = array
        return address, own

    def free(self) -> None:
        for address, size in self._blocks:
            self._library.drl_release(address, size)


def emulate(call: Call, *, seed: int = 0, aligned: bool = True) -> tuple[Array, ...]:
    """Launch a kernel over NumPy arrays; its outputs, which start as rubbish.

    Args:
        call: What to launch.
        seed: Decides the order of threads.
        aligned: Arrays start at 16 bytes; otherwise they end at the very end of memory.

    Raises:
        EmulationError: Memory outside of the arrays, a barrier that not all reach, or the like.
    """
    library = _library(call.kernel.source)
    memory = _Guarded(library, aligned=aligned)
    dtype = _DTYPES[call.kernel.dtype]
    outputs = [
        np.full(output.shape, 77, np.dtype(output.dtype) if output.dtype else dtype)
        for output in call.outputs
    ]
    given = [memory.copy(np.ascontiguousarray(array)) for array in (*call.inputs, *outputs)]
    pointers = [ctypes.c_void_p(address) for address, _ in given]
    sizes = [ctypes.c_int(size) for size in call.sizes]
    count = len(call.inputs)
    values: list[Any] = [*pointers[:count], *sizes, *pointers[count:]]
    assert library.drl_arguments() == len(values)
    arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    try:
        message = library.drl_launch(arguments, *call.grid, 1, BLOCK, seed)
        if message:
            raise EmulationError(f"{call.kernel.source}: {message.decode()}")
        for (_, after), before in zip(given, call.inputs, strict=False):
            np.testing.assert_array_equal(_bytes(after), _bytes(before))
        return tuple(array.copy() for _, array in given[count:])
    finally:
        memory.free()


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
