"""The kernels called from NumPy: packing weights for a bundle, and tests."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drl.plugins.native import abi
from drl.plugins.native.library import LIBRARY, NativeLibraryError, load

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]
ParallelFor = Callable[[int, Callable[[int], None]], None]
"""Calls the function it is given once for every number below the count it is given."""

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
"""The values of `drl_activation`."""

ISAS = ("scalar", "avx2", "avx512vnni")
"""The names of the values of `drl_isa`."""


@dataclass(frozen=True)
class RoutedWeights:
    """The packed weights of all experts of a layer; biases as in the operator `RoutedFFN`.

    `up` and `gate` hold E matrices of [f, d], `down` E matrices of [d, f].
    """

    up: Bytes
    down: Bytes
    gate: Bytes | None = None
    up_bias: Float32 | None = None
    down_bias: Float32 | None = None
    gate_bias: Float32 | None = None


class Kernels:
    """The native library's functions on arrays.

    Args:
        isa: "avx512vnni", "avx2" or "scalar"; None takes the best that the processor has, or the
            one that the environment variable `DRL_NATIVE_ISA` names.
        parallel_for: Runs the tasks of a kernel; None runs them one after the other.
        path: The library.

    Attributes:
        isa: The instruction set in use.

    Raises:
        NativeLibraryError: The library is missing, or the processor lacks the instruction set.
    """

    def __init__(
        self,
        isa: str | None = None,
        parallel_for: ParallelFor | None = None,
        path: Path = LIBRARY,
    ) -> None:
        self._library = abi.declare(load(path))
        chosen = ctypes.c_int()
        if isa is None:
            self._check(self._library.drl_default_isa(ctypes.byref(chosen)))
        else:
            self._check(self._library.drl_isa_by_name(isa.encode(), ctypes.byref(chosen)))
        self.isa = ISAS[chosen.value]
        self._callback = abi.ParallelFor()
        if parallel_for is not None:
            self._callback = abi.ParallelFor(_calling(parallel_for))
        self._execution = abi.Execution(chosen.value, self._callback, None)

    def pack(self, weights: NDArray[Any]) -> Bytes:
        """Quantise weights `[N, K]` or `[E, N, K]` per output channel, and pack them.

        Raises:
            NativeLibraryError: They hold NaN or infinity, or are too large or empty.
        """
        values = np.ascontiguousarray(weights, np.float32)
        shape, packed = self._packed_for(values.shape)
        self._check(
            self._library.drl_pack(
                values.ctypes.data, ctypes.byref(shape), packed.ctypes.data, packed.nbytes
            )
        )
        return packed

    def pack_int8(self, weights: NDArray[np.int8], scales: Float32) -> Bytes:
        """Pack int8 weights `[N, K]` or `[E, N, K]` with scales `[N]` or `[E, N]`.

        Raises:
            NativeLibraryError: A scale is not finite, or a weight is -128.
        """
        values = np.ascontiguousarray(weights, np.int8)
        factors = np.ascontiguousarray(scales, np.float32)
        if factors.shape != values.shape[:-1]:
            raise NativeLibraryError(f"scales {factors.shape} do not fit weights {values.shape}")
        shape, packed = self._packed_for(values.shape)
        self._check(
            self._library.drl_pack_int8(
                values.ctypes.data,
                factors.ctypes.data,
                ctypes.byref(shape),
                packed.ctypes.data,
                packed.nbytes,
            )
        )
        return packed

    def shape(self, packed: Bytes) -> tuple[int, int, int]:
        """Matrices E, output channels N and depth K of packed weights.

        Raises:
            NativeLibraryError: They are damaged, or of a newer layout.
        """
        shape = abi.PackedShape()
        self._check(self._library.drl_read_packed_shape(abi.Packed.of(packed), ctypes.byref(shape)))
        return shape.matrices, shape.columns, shape.depth

    def unpack(self, packed: Bytes) -> tuple[NDArray[np.int8], Float32]:
        """Int8 weights `[E, N, K]` and scales `[E, N]` of packed weights."""
        shape = self.shape(packed)
        weights, scales = np.empty(shape, np.int8), np.empty(shape[:2], np.float32)
        self._check(
            self._library.drl_unpack_int8(
                abi.Packed.of(packed), weights.ctypes.data, scales.ctypes.data
            )
        )
        return weights, scales

    def linear(
        self,
        x: Float32,
        packed: Bytes,
        bias: Float32 | None = None,
        activation: str = "none",
    ) -> Float32:
        """`activation(x @ W.T + bias)` for x `[M, K]`, each row quantised by itself."""
        x = np.ascontiguousarray(x, np.float32)
        shape = abi.PackedShape(*self.shape(packed))
        bias = _contiguous(bias)
        _expect("x", x, (len(x), shape.depth))
        _expect("bias", bias, (shape.columns,))
        y = np.empty((len(x), shape.columns), np.float32)
        call = abi.Linear(
            abi.Packed.of(packed),
            abi.address(bias),
            ACTIVATIONS[activation],
            x.ctypes.data,
            len(x),
            y.ctypes.data,
        )
        size = self._library.drl_linear_workspace_bytes(ctypes.byref(shape), len(x))
        self._run(self._library.drl_linear_int8, call, size)
        return y

    def top_k(
        self, x: Float32, packed: Bytes, k: int, bias: Float32 | None = None
    ) -> tuple[Float32, NDArray[np.int32]]:
        """The k largest values of every row of `linear`, and their columns, both `[M, k]`.

        The largest come first, and equal ones by column. NaN is below every number.

        Raises:
            NativeLibraryError: k is not in [1, N], or an array does not fit.
        """
        x = np.ascontiguousarray(x, np.float32)
        shape = abi.PackedShape(*self.shape(packed))
        bias = _contiguous(bias)
        _expect("x", x, (len(x), shape.depth))
        _expect("bias", bias, (shape.columns,))
        if not 1 <= k <= shape.columns:
            raise NativeLibraryError(f"k must be in [1, {shape.columns}], got {k}")
        values, ids = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int32)
        call = abi.TopK(
            abi.Packed.of(packed),
            abi.address(bias),
            x.ctypes.data,
            len(x),
            k,
            values.ctypes.data,
            ids.ctypes.data,
        )
        size = self._library.drl_top_k_workspace_bytes(ctypes.byref(shape), len(x), k)
        self._run(self._library.drl_top_k_int8, call, size)
        return values, ids

    def routed_ffn(
        self,
        x: Float32,
        expert_ids: NDArray[np.int32],
        gates: Float32,
        weights: RoutedWeights,
        activation: str,
    ) -> Float32:
        """The operator `RoutedFFN` for x `[T, d]`, expert ids and gates `[T, k]`."""
        x = np.ascontiguousarray(x, np.float32)
        ids = np.ascontiguousarray(expert_ids, np.int32)
        factors = np.ascontiguousarray(gates, np.float32)
        biases = [_contiguous(b) for b in (weights.up_bias, weights.gate_bias, weights.down_bias)]
        shape = abi.PackedShape(*self.shape(weights.up))
        _expect("x", x, (len(x), shape.depth))
        _expect("gates", factors, ids.shape)
        for bias, width in zip(biases, (shape.columns, shape.columns, shape.depth), strict=True):
            _expect("bias", bias, (shape.matrices, width))
        y = np.empty_like(x)
        call = abi.RoutedFfn(
            abi.Packed.of(weights.up),
            abi.Packed.of(weights.gate),
            abi.Packed.of(weights.down),
            *(abi.address(bias) for bias in biases),
            ACTIVATIONS[activation],
            x.ctypes.data,
            ids.ctypes.data,
            factors.ctypes.data,
            *ids.shape,
            y.ctypes.data,
        )
        size = self._library.drl_routed_ffn_workspace_bytes(ctypes.byref(shape), *ids.shape)
        self._run(self._library.drl_routed_ffn_int8, call, size)
        return y

    def _packed_for(self, shape: tuple[int, ...]) -> tuple[abi.PackedShape, Bytes]:
        if len(shape) not in (2, 3):
            raise NativeLibraryError(f"weights must be [N, K] or [E, N, K], got {shape}")
        packed_shape = abi.PackedShape(*((1, *shape)[-3:]))
        size = self._library.drl_packed_bytes(ctypes.byref(packed_shape))
        if size == 0:
            raise NativeLibraryError(f"weights of shape {shape} cannot be packed")
        return packed_shape, np.empty(size, np.uint8)

    def _run(self, function: Any, call: ctypes.Structure, workspace_bytes: int) -> None:
        memory = np.empty(workspace_bytes, np.uint8)
        workspace = abi.Workspace(memory.ctypes.data, memory.nbytes)
        self._check(function(ctypes.byref(call), workspace, ctypes.byref(self._execution)))

    def _check(self, status: int) -> None:
        if status != 0:
            raise NativeLibraryError(self._library.drl_status_message(status).decode())


def _calling(parallel_for: ParallelFor) -> Callable[[Any, int, Any, Any], None]:
    def run(_: Any, count: int, task: Any, state: Any) -> None:
        parallel_for(count, lambda index: task(state, index))

    return run


def _contiguous(array: Float32 | None) -> Float32 | None:
    return None if array is None else np.ascontiguousarray(array, np.float32)


def _expect(name: str, array: NDArray[Any] | None, shape: tuple[int, ...]) -> None:
    if array is not None and array.shape != shape:
        raise NativeLibraryError(f"{name} must be {shape}, got {array.shape}")
