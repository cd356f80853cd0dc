"""The kernels called from NumPy, as tests and measurements do."""

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from drl.plugins.native import abi
from drl.plugins.native.library import LIBRARY, NativeLibraryError, load

if TYPE_CHECKING:  # the package of operators imports ONNX, and nothing here needs it
    from drl.plugins.ops.packing import PackedWeights

Bool = NDArray[np.bool_]
Int8 = NDArray[np.int8]
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
ParallelFor = Callable[[int, Callable[[int], None]], None]
"""Calls the function it is given once for every number below the count it is given."""

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
"""The values of `drl_activation`."""

FORMATS = {"int8": 0, "int4": 1, "int8-block": 2}
"""The values of `drl_format`."""

ISAS = ("scalar", "avx2", "avx512vnni")
"""The names of the values of `drl_isa`."""


@dataclass(frozen=True)
class RmsNorm:
    """What becomes of a row before it is multiplied: `x · weight / sqrt(mean(x²) + epsilon)`."""

    weight: Float32
    epsilon: float = 1e-6


@dataclass(frozen=True)
class RoutedWeights:
    """The weights of all experts of a layer; biases as in the operator `RoutedFFN`.

    `up` and `gate` hold E matrices of [f, d], `down` E matrices of [d, f].
    """

    up: "PackedWeights"
    down: "PackedWeights"
    gate: "PackedWeights | None" = None
    up_bias: Float32 | None = None
    down_bias: Float32 | None = None
    gate_bias: Float32 | None = None


@dataclass(frozen=True)
class HeadResult:
    """What the head says of every row.

    Attributes:
        logits: `[M, N]`, or None where they were not asked for.
        values: The k largest logits `[M, k]`, the largest first.
        ids: Their columns `[M, k]`.
        normalisers: log Σ exp(logits), `[M]`.
    """

    logits: Float32 | None
    values: Float32
    ids: Int32
    normalisers: Float32


class Kernels:
    """The native library's functions on arrays. Those that are not of the right type are converted.

    Args:
        isa: "avx512vnni", "avx2" or "scalar"; None takes the best that the processor has, or the
            one that the environment variable `DRL_NATIVE_ISA` names.
        parallel_for: Runs the tasks of a kernel; None runs them one after the other. What it raises
            is raised by the method that was called.
        path: The library.

    Attributes:
        isa: The instruction set in use.

    Raises:
        NativeLibraryError: The library is missing, or the processor lacks the instruction set; of
            every method: an array does not fit the others.
    """

    def __init__(
        self,
        isa: str | None = None,
        parallel_for: ParallelFor | None = None,
        path: Path = LIBRARY,
    ) -> None:
        self._library = load(path)
        chosen = ctypes.c_int()
        if isa is None:
            self._check(self._function("drl_default_isa")(ctypes.byref(chosen)))
        else:
            self._check(self._function("drl_isa_by_name")(isa.encode(), ctypes.byref(chosen)))
        self.isa = ISAS[chosen.value]
        self._threads = None if parallel_for is None else _Threads(parallel_for)
        callback = abi.ParallelFor() if self._threads is None else self._threads.callback
        self._execution = abi.Execution(chosen.value, callback, None)

    def linear(
        self,
        x: Float32,
        weights: "PackedWeights",
        bias: Float32 | None = None,
        activation: str = "none",
        *,
        norm: RmsNorm | None = None,
        residual: Float32 | None = None,
    ) -> Float32:
        """`residual + activation(x̂ · Wᵀ + bias)` for x `[M, K]`, each row quantised by itself.

        With two matrices it is `residual + activation(x̂ · W₀ᵀ + bias[0]) · (x̂ · W₁ᵀ + bias[1])`,
        with bias `[2, N]` instead of `[N]`.
        """
        (y,) = self._linear(x, weights, bias, activation, norm, residual, (weights.columns,))
        return y

    def split_linear(
        self,
        x: Float32,
        weights: "PackedWeights",
        columns: tuple[int, ...],
        bias: Float32 | None = None,
        *,
        norm: RmsNorm | None = None,
    ) -> tuple[Float32, ...]:
        """`x̂ · Wᵀ + bias`, its columns split over up to three arrays `[M, columns[i]]`."""
        return self._linear(x, weights, bias, "none", norm, None, columns)

    def float_linear(
        self,
        x: Float32,
        panels: Float32,
        columns: tuple[int, ...],
        bias: Float32 | None = None,
        activation: str = "none",
        *,
        norm: RmsNorm | None = None,
        residual: Float32 | None = None,
    ) -> tuple[Float32, ...]:
        """The same as `linear` for matrices of floats in panels (`drl.plugins.ops.panels`).

        Its columns are split over up to three arrays `[M, columns[i]]`, as those of `split_linear`.
        """
        _expect_few(columns)
        x, panels, kept = _contiguous(x, np.float32), _contiguous(panels, np.float32), _Kept()
        matrices, _, depth, _ = panels.shape
        sizes = (matrices, sum(columns))
        needed = -(-sizes[1] // abi.FLOAT_PANEL)
        _expect("panels", panels, (matrices, needed, depth, abi.FLOAT_PANEL))
        call = abi.FloatLinear(*sizes, depth, panels.ctypes.data, _rows(x, depth, norm, kept))
        return self._finished("float_linear", call, sizes, columns, bias, activation, residual)

    def head(
        self,
        x: Float32,
        weights: "PackedWeights",
        k: int = 0,
        bias: Float32 | None = None,
        *,
        factor: float = 1.0,
        norm: RmsNorm | None = None,
        logits: bool = False,
    ) -> HeadResult:
        """Logits `(x̂ · Wᵀ) · factor + bias`, if asked for, and the k largest of every row.

        Equal ones come by column, and NaN is below every number.

        Raises:
            NativeLibraryError: k is not in [0, N], or an array does not fit.
        """
        x = _contiguous(x, np.float32)
        bias = _optional(bias)
        _expect("bias", bias, (weights.columns,))
        result = _head_result(len(x), weights.columns, k, logits)
        kept = _Kept()
        call = abi.Head(
            _weights(weights, kept),
            _rows(x, weights.depth, norm, kept),
            abi.address(bias),
            factor,
            abi.address(result.logits),
            k,
            result.values.ctypes.data,
            result.ids.ctypes.data,
            result.normalisers.ctypes.data,
        )
        self._run("head", call)
        return result

    def float_head(
        self,
        x: Float32,
        weight: Float32,
        k: int = 0,
        bias: Float32 | None = None,
        *,
        factor: float = 1.0,
        logits: bool = False,
    ) -> HeadResult:
        """The same as `head` for x `[M, K]` and a weight `[N, K]` of floats.

        Raises:
            NativeLibraryError: k is not in [0, N], or an array does not fit.
        """
        x, weight, bias = (
            _contiguous(x, np.float32),
            _contiguous(weight, np.float32),
            _optional(bias),
        )
        columns, depth = weight.shape
        _expect("x", x, (len(x), depth))
        _expect("bias", bias, (columns,))
        result = _head_result(len(x), columns, k, logits)
        call = abi.FloatHead(
            *(len(x), depth, columns),
            *(abi.address(array) for array in (x, weight, bias)),
            factor,
            abi.address(result.logits),
            k,
            *(array.ctypes.data for array in (result.values, result.ids, result.normalisers)),
        )
        self._run("float_head", call)
        return result

    def routed_ffn(
        self,
        x: Float32,
        expert_ids: Int32,
        gates: Float32,
        weights: RoutedWeights,
        activation: str,
        residual: Float32 | None = None,
    ) -> Float32:
        """The operator `RoutedFFN` for x `[T, d]`, expert ids and gates `[T, k]`."""
        x = _contiguous(x, np.float32)
        ids, factors = _contiguous(expert_ids, np.int32), _contiguous(gates, np.float32)
        biases = [_optional(b) for b in (weights.up_bias, weights.gate_bias, weights.down_bias)]
        residual = _optional(residual)
        up = weights.up
        _expect("x", x, (len(x), up.depth))
        if ids.ndim != 2 or len(ids) != len(x):
            raise NativeLibraryError(f"expert_ids must be ({len(x)}, choices), got {ids.shape}")
        _expect("gates", factors, ids.shape)
        _expect("residual", residual, x.shape)
        for bias, width in zip(biases, (up.columns, up.columns, up.depth), strict=True):
            _expect("bias", bias, (up.matrices, width))
        y = np.empty_like(x)
        kept = _Kept()
        call = abi.RoutedFfn(
            up=_weights(up, kept),
            gate=abi.Weights() if weights.gate is None else _weights(weights.gate, kept),
            down=_weights(weights.down, kept),
            up_bias=abi.address(biases[0]),
            gate_bias=abi.address(biases[1]),
            down_bias=abi.address(biases[2]),
            activation=ACTIVATIONS[activation],
            x=x.ctypes.data,
            expert_ids=ids.ctypes.data,
            gates=factors.ctypes.data,
            tokens=len(ids),
            choices=ids.shape[1],
            residual=abi.address(residual),
            y=y.ctypes.data,
        )
        self._run("routed_ffn", call)
        return y

    def float_routed_ffn(
        self,
        x: Float32,
        expert_ids: Int32,
        gates: Float32,
        up: Float32,
        down: Float32,
        gate: Float32 | None = None,
        up_bias: Float32 | None = None,
        down_bias: Float32 | None = None,
        gate_bias: Float32 | None = None,
        *,
        activation: str,
    ) -> Float32:
        """The operator `RoutedFFN` for x `[T, d]`, expert ids and gates `[T, k]`.

        `up` and `gate` are `[E, d, f]`, `down` is `[E, f, d]`. The activation is one of
        `ACTIVATIONS`, of the gate where there is one.
        """
        x, up, down = (_contiguous(array, np.float32) for array in (x, up, down))
        ids, factors = _contiguous(expert_ids, np.int32), _contiguous(gates, np.float32)
        gate, up_bias, down_bias, gate_bias = (
            _optional(array) for array in (gate, up_bias, down_bias, gate_bias)
        )
        experts, width, inner = up.shape
        _expect("x", x, (len(x), width))
        if ids.ndim != 2 or len(ids) != len(x):
            raise NativeLibraryError(f"expert_ids must be ({len(x)}, choices), got {ids.shape}")
        _expect("gates", factors, ids.shape)
        _expect("down", down, (experts, inner, width))
        _expect("gate", gate, up.shape)
        for name, bias in (("up_bias", up_bias), ("gate_bias", gate_bias)):
            _expect(name, bias, (experts, inner))
        _expect("down_bias", down_bias, (experts, width))
        y = np.empty_like(x)
        call = abi.FloatRoutedFfn(
            *(*ids.shape, experts, width, inner),
            *(abi.address(array) for array in (x, ids, factors, up, gate, down)),
            *(abi.address(array) for array in (up_bias, gate_bias, down_bias)),
            ACTIVATIONS[activation],
            y.ctypes.data,
        )
        self._run("float_routed_ffn", call)
        return y

    def gather_rows(self, ids: NDArray[np.int64], weights: "PackedWeights") -> Float32:
        """Rows of one matrix of 8 bits as floats `[..., K]`.

        Raises:
            NativeLibraryError: An id is outside of [0, N), or the weights are int4.
        """
        ids = _contiguous(ids, np.int64)
        y = np.empty((*ids.shape, weights.depth), np.float32)
        kept = _Kept()
        packed = _weights(weights, kept)
        gather = self._function("drl_gather_rows")
        place = (ids.ctypes.data, ids.size, y.ctypes.data)
        self._finish(gather(ctypes.byref(packed), *place, ctypes.byref(self._execution)))
        return y

    def cached_attention(
        self,
        q: Float32,
        k: Float32,
        v: Float32,
        keys: Float32 | Int8,
        values: Float32 | Int8,
        lengths: Int32,
        bias: Float32 | None = None,
        *,
        num_heads: int,
        scale: float,
    ) -> Float32:
        """The operator `CachedAttention`: q `[B, T, H·h]` attends to caches `[B, N, C, h]`.

        Over caches of int8 `[B, N, C, h + 2]` it is `QuantizedCachedAttention`. `keys` and `values`
        are written in place, so they must be contiguous arrays of one of the two types. `bias` is
        `[1 or B, H, T, max(lengths) + T]`.
        """
        q, k, v = (_contiguous(array, np.float32) for array in (q, k, v))
        lengths, bias = _contiguous(lengths, np.int32), _optional(bias)
        rows, kv_heads, capacity, stored = keys.shape
        rounded = _are_rounded(keys, values)
        tokens, width = q.shape[1], stored - abi.SCALE_BYTES if rounded else stored
        slots = int(lengths.max(initial=0)) + tokens
        _expect("q", q, (rows, tokens, num_heads * width))
        for name, array in (("k", k), ("v", v)):
            _expect(name, array, (rows, tokens, kv_heads * width))
        _expect("values", values, keys.shape)
        _expect("lengths", lengths, (rows,))
        bias_rows = 0 if bias is None else len(bias)
        _expect("bias", bias, (bias_rows, num_heads, tokens, slots))
        for name, side in (("keys", keys), ("values", values)):
            if not side.flags.c_contiguous:
                raise NativeLibraryError(f"{name} must be contiguous: they are written in place")
        y = np.empty_like(q)
        call = (abi.QuantizedCachedAttention if rounded else abi.CachedAttention)(
            *(rows, tokens, num_heads, kv_heads, width, capacity),
            scale,
            *(abi.address(array) for array in (q, k, v, keys, values, lengths, bias)),
            bias_rows,
            slots,
            y.ctypes.data,
        )
        self._run("quantized_cached_attention" if rounded else "cached_attention", call)
        return y

    def cross_attention(
        self,
        q: Float32,
        keys: Float32 | Int8,
        values: Float32 | Int8,
        bias: Float32,
        *,
        num_heads: int,
        scale: float,
    ) -> Float32:
        """The operator `CrossAttention`: q `[B, T, H·h]`, keys and values `[R, N, K, h]`.

        With keys and values of int8, `[R, N, K, h + 2]`, it is `QuantizedCrossAttention`.
        """
        rounded = _are_rounded(keys, values)
        q, bias = _contiguous(q, np.float32), _contiguous(bias, np.float32)
        keys, values = (_contiguous(a, np.int8 if rounded else np.float32) for a in (keys, values))
        sources, kv_heads, states, stored = keys.shape
        width = stored - abi.SCALE_BYTES if rounded else stored
        rows, tokens = q.shape[:2]
        _expect("q", q, (rows, tokens, num_heads * width))
        _expect("values", values, keys.shape)
        _expect("bias", bias, (sources, states))
        y = np.empty_like(q)
        call = (abi.QuantizedCrossAttention if rounded else abi.CrossAttention)(
            *(rows, sources, tokens, num_heads, kv_heads, width, states),
            scale,
            *(array.ctypes.data for array in (q, keys, values, bias, y)),
        )
        self._run("quantized_cross_attention" if rounded else "cross_attention", call)
        return y

    def encoder_attention(
        self,
        q: Float32,
        k: Float32,
        v: Float32,
        lengths: Int32,
        bias: Float32 | None = None,
        *,
        num_heads: int,
        scale: float,
    ) -> Float32:
        """The operator `EncoderAttention`: q `[B, S, H·h]`, k and v `[B, S, N·h]`.

        `bias` is `[D, H]`, D odd.
        """
        q, k, v = (_contiguous(array, np.float32) for array in (q, k, v))
        lengths, bias = _contiguous(lengths, np.int32), _optional(bias)
        rows, tokens, columns = q.shape
        width = columns // num_heads
        kv_heads = k.shape[2] // max(width, 1)
        _expect("q", q, (rows, tokens, num_heads * width))
        for name, array in (("k", k), ("v", v)):
            _expect(name, array, (rows, tokens, kv_heads * width))
        _expect("lengths", lengths, (rows,))
        distances = 0 if bias is None else len(bias)
        _expect("bias", bias, (distances, num_heads))
        y = np.empty_like(q)
        call = abi.EncoderAttention(
            *(rows, tokens, num_heads, kv_heads, width),
            scale,
            *(abi.address(array) for array in (q, k, v, lengths, bias)),
            distances,
            y.ctypes.data,
        )
        self._run("encoder_attention", call)
        return y

    def quantize_states(self, x: Float32, kv_heads: int) -> Int8:
        """The operator `QuantizeStates`: x `[B, K, N·h]` as rows `[B, N, K, h + 2]`."""
        x = _contiguous(x, np.float32)
        rows, states, columns = x.shape
        width = columns // kv_heads
        _expect("x", x, (rows, states, kv_heads * width))
        y = np.empty((rows, kv_heads, states, width + abi.SCALE_BYTES), np.int8)
        self._run(
            "quantize_states",
            abi.QuantizeStates(rows, states, kv_heads, width, x.ctypes.data, y.ctypes.data),
        )
        return y

    def expert_route(
        self,
        x: Float32,
        weight: Float32,
        group_log_probs: Float32,
        allowed: Bool,
        token_mask: Bool,
        bias: Float32 | None = None,
        *,
        k: int,
        prior_scale: float,
    ) -> tuple[Int32, Float32]:
        """The operator `ExpertRoute` for x `[T, d]`: expert ids and gates, both `[T, k]`.

        `weight` is `[d, E]`, `group_log_probs` and `allowed` `[T, G]`, `token_mask` `[T]`.
        """
        x, weight = _contiguous(x, np.float32), _contiguous(weight, np.float32)
        priors, bias = _contiguous(group_log_probs, np.float32), _optional(bias)
        allowed, token_mask = _contiguous(allowed, np.bool_), _contiguous(token_mask, np.bool_)
        tokens, (depth, experts), groups = len(x), weight.shape, priors.shape[1]
        _expect("x", x, (tokens, depth))
        _expect("bias", bias, (experts,))
        _expect("group_log_probs", priors, (tokens, groups))
        _expect("allowed", allowed, (tokens, groups))
        _expect("token_mask", token_mask, (tokens,))
        ids, gates = np.empty((tokens, k), np.int32), np.empty((tokens, k), np.float32)
        call = abi.ExpertRoute(
            *(tokens, depth, experts, groups, k),
            *(abi.address(array) for array in (x, weight, bias)),
            prior_scale,
            *(array.ctypes.data for array in (priors, allowed, token_mask, ids, gates)),
        )
        self._run("expert_route", call)
        return ids, gates

    def _linear(
        self,
        x: Float32,
        weights: "PackedWeights",
        bias: Float32 | None,
        activation: str,
        norm: RmsNorm | None,
        residual: Float32 | None,
        columns: tuple[int, ...],
    ) -> tuple[Float32, ...]:
        _expect_few(columns)
        x, kept = _contiguous(x, np.float32), _Kept()
        call = abi.Linear(_weights(weights, kept), _rows(x, weights.depth, norm, kept))
        sizes = (weights.matrices, weights.columns)
        return self._finished("linear", call, sizes, columns, bias, activation, residual)

    def _finished(
        self,
        operator: str,
        call: abi.Linear | abi.FloatLinear,
        sizes: tuple[int, int],
        columns: tuple[int, ...],
        bias: Float32 | None,
        activation: str,
        residual: Float32 | None,
    ) -> tuple[Float32, ...]:
        """Run a linear of M matrices of N columns with what comes after the products."""
        bias, residual = _optional(bias), _optional(residual)
        _expect("bias", bias, sizes if sizes[0] > 1 else sizes[1:])
        _expect("residual", residual, (call.rows.count, sizes[1]))
        outputs = tuple(np.empty((call.rows.count, width), np.float32) for width in columns)
        call.bias, call.residual = abi.address(bias), abi.address(residual)
        call.activation = ACTIVATIONS[activation]
        for place, y in enumerate(outputs):
            call.outputs[place] = abi.Output(y.ctypes.data, y.shape[1])
        self._run(operator, call)
        return outputs

    def _run(self, operator: str, call: ctypes.Structure) -> None:
        size = self._function(f"drl_{operator}_workspace_bytes")(ctypes.byref(call))
        memory = np.empty(size, np.uint8)
        workspace = abi.Workspace(memory.ctypes.data, memory.nbytes)
        run = self._function(f"drl_{operator}_run")
        self._finish(run(ctypes.byref(call), workspace, ctypes.byref(self._execution)))

    def _finish(self, status: int) -> None:
        """Raise what a task has raised, or what the status says."""
        if self._threads is not None:
            self._threads.raise_kept()
        self._check(status)

    def _function(self, name: str) -> Any:
        return abi.function(self._library, name)

    def _check(self, status: int) -> None:
        if status != 0:
            message = self._function("drl_status_message")(status)
            raise NativeLibraryError(message.decode())


class _Kept(list[NDArray[Any]]):
    """Arrays that structs point to and that must live until the call is over."""

    def address(self, array: NDArray[Any], dtype: DTypeLike) -> int:
        """Where the array lies, or a contiguous copy of this type."""
        self.append(_contiguous(array, dtype))
        return self[-1].ctypes.data


def _weights(weights: "PackedWeights", kept: _Kept) -> abi.Weights:
    multipliers = weights.multipliers
    return abi.Weights(
        FORMATS[weights.format],
        *(weights.matrices, weights.columns, weights.depth),
        kept.address(weights.values, np.uint8),
        None if multipliers is None else kept.address(multipliers, np.uint8),
        kept.address(weights.scales, np.float32),
    )


def _rows(x: Float32, depth: int, norm: RmsNorm | None, kept: _Kept) -> abi.Rows:
    _expect("x", x, (len(x), depth))
    if norm is None:
        return abi.Rows(x.ctypes.data, len(x), None, 0.0)
    _expect("norm", np.asarray(norm.weight), (depth,))
    scale = kept.address(norm.weight, np.float32)
    return abi.Rows(x.ctypes.data, len(x), scale, norm.epsilon)


def _expect_few(outputs: tuple[int, ...]) -> None:
    if len(outputs) > 3:
        raise NativeLibraryError(f"there are at most 3 outputs, got {len(outputs)}")


def _head_result(rows: int, columns: int, k: int, logits: bool) -> HeadResult:
    if not 0 <= k <= columns:
        raise NativeLibraryError(f"k must be in [0, {columns}], got {k}")
    return HeadResult(
        np.empty((rows, columns), np.float32) if logits else None,
        np.empty((rows, k), np.float32),
        np.empty((rows, k), np.int32),
        np.empty(rows, np.float32),
    )


class _Threads:
    """A caller's `parallel_for` as C calls it.

    An exception cannot pass through C, so it is kept until the call is over.
    """

    def __init__(self, parallel_for: ParallelFor) -> None:
        self._parallel_for = parallel_for
        self._kept = threading.local()  # other calls may run at the same time
        self.callback = abi.ParallelFor(self._run)

    def _run(self, _: Any, count: int, task: Any, state: Any) -> None:
        if hasattr(self._kept, "error"):
            return
        try:
            self._parallel_for(count, lambda index: task(state, index))
        except BaseException as error:
            self._kept.error = error

    def raise_kept(self) -> None:
        """Raise what the call that has just ended on this thread has kept."""
        error: BaseException | None = self._kept.__dict__.pop("error", None)
        if error is not None:
            raise error


def _contiguous(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype)


def _optional(array: Float32 | None) -> Float32 | None:
    return None if array is None else np.ascontiguousarray(array, np.float32)


def _are_rounded(keys: Float32 | Int8, values: Float32 | Int8) -> bool:
    """Whether keys and values are int8, which both of them must be, or both float32."""
    if keys.dtype != values.dtype or keys.dtype not in (np.float32, np.int8):
        raise NativeLibraryError(
            f"keys and values must be float32 or int8, both, got {keys.dtype} and {values.dtype}"
        )
    return keys.dtype == np.int8


def _expect(name: str, array: NDArray[Any] | None, shape: tuple[int, ...]) -> None:
    if array is not None and array.shape != shape:
        raise NativeLibraryError(f"{name} must be {shape}, got {array.shape}")
