"""Launches the kernels on CuPy arrays."""

from typing import Any

import numpy as np

from drl.plugins.cuda.calls import Call
from drl.plugins.cuda.compile import compile_cubin
from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.cuda.kernels import KernelSource
from drl.plugins.cuda.tiling import BLOCK


def missing() -> str:
    """Why kernels cannot be launched here, and what mends it; empty where they can."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed; pip install 'drl[cuda]'"
    try:
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return ""
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"there is no NVIDIA GPU that CUDA can use ({error}); run on a machine with one"
    return "there is no NVIDIA GPU; run on a machine with one"


class Launcher:
    """Compiles kernels for the current GPU when they are first used, and launches them.

    A launch goes to CuPy's current stream and returns at once. Results are CuPy arrays; those that
    have the type of the states get the dtype of the first input, so bfloat16 may travel as uint16.
    """

    def __init__(self) -> None:
        """Look for a GPU.

        Raises:
            CudaKernelError: There is none, or CuPy is missing, or the GPU is too old.
        """
        if reason := missing():
            raise CudaKernelError(reason)
        import cupy

        self._cupy = cupy
        self.architecture = int(cupy.cuda.Device().compute_capability)
        self._functions: dict[KernelSource, tuple[Any, Any]] = {}

    def __call__(self, call: Call) -> tuple[Any, ...]:
        """Launch a kernel into new arrays.

        Raises:
            CudaKernelError: An array is not contiguous, or the kernel does not compile.
        """
        outputs = self.outputs(call)
        self.into(call, outputs)
        return outputs

    def outputs(self, call: Call) -> tuple[Any, ...]:
        """New arrays for what a call makes, not initialised."""
        return tuple(
            self._cupy.empty(output.shape, output.dtype or call.inputs[0].dtype)
            for output in call.outputs
        )

    def into(self, call: Call, outputs: tuple[Any, ...]) -> None:
        """Launch a kernel into these arrays.

        Raises:
            CudaKernelError: An array is not contiguous, or the kernel does not compile.
        """
        if not all(array.flags.c_contiguous for array in (*call.inputs, *outputs)):
            raise CudaKernelError("a kernel's arrays must be C-contiguous; copy them")
        if 0 in call.grid:
            return  # nothing to compute
        sizes = (np.int32(size) for size in call.sizes)
        function = self._function(call.kernel.source)
        function((*call.grid, 1), (BLOCK, 1, 1), (*call.inputs, *sizes, *outputs))

    def _function(self, source: KernelSource) -> Any:
        if source not in self._functions:
            cubin, _ = compile_cubin(source, self.architecture)
            module = self._cupy.cuda.function.Module()
            module.load(cubin)
            # The function is valid as long as its module is.
            self._functions[source] = module, module.get_function(source.entry)
        return self._functions[source][1]
