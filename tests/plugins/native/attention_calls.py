"""Calls of the attention kernels: random arguments, what the operators make of them, their rows."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drl.plugins.native import Kernels
from drl.plugins.ops import (
    CACHED_ATTENTION,
    CROSS_ATTENTION,
    ENCODER_ATTENTION,
    QUANTIZED_CACHED_ATTENTION,
    QUANTIZED_CROSS_ATTENTION,
)
from drl.plugins.ops.state_rows import quantize_states

Float32 = NDArray[np.float32]
States = NDArray[np.float32] | NDArray[np.int8]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Float32:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape) * scale
    return values.astype(np.float32)


@dataclass(frozen=True)
class Cached:
    """Arguments of one `CachedAttention`, or with a cache of int8 `QuantizedCachedAttention`."""

    q: Float32
    k: Float32
    v: Float32
    keys: States
    values: States
    lengths: NDArray[np.int32]
    bias: Float32 | None
    heads: int
    scale: float

    @classmethod
    def random(
        cls,
        past: tuple[int, ...],
        *,
        tokens: int = 1,
        kv_heads: int = 2,
        shared: int = 1,
        width: int = 16,
        spare: int = 3,
        bias_rows: int = 0,
        seed: int = 0,
    ) -> "Cached":
        batch, slots, heads = len(past), max(past) + tokens, kv_heads * shared
        keys, values = (
            draw(batch, kv_heads, slots + spare, width, seed=seed + part) for part in (1, 2)
        )
        for row, length in enumerate(past):
            # What lies beyond a row must not be read, not even to be multiplied by 0.
            keys[row, :, length:] = np.nan
            values[row, :, length:] = np.nan
        return cls(
            draw(batch, tokens, heads * width, seed=seed + 3),
            draw(batch, tokens, kv_heads * width, seed=seed + 4),
            draw(batch, tokens, kv_heads * width, seed=seed + 5),
            keys,
            values,
            np.array(past, np.int32),
            draw(bias_rows, heads, tokens, slots, seed=seed + 6) if bias_rows else None,
            heads,
            width**-0.5,
        )

    def rounded(self) -> "Cached":
        """The same over a cache of int8."""
        with np.errstate(all="ignore"):  # places that must not be read hold NaN
            keys, values = quantize_states(self.keys), quantize_states(self.values)
        return replace(self, keys=keys, values=values)

    def run(self, native: Kernels) -> tuple[Float32, States, States]:
        keys, values = self.keys.copy(), self.values.copy()
        y = native.cached_attention(
            *(self.q, self.k, self.v, keys, values, self.lengths, self.bias),
            num_heads=self.heads,
            scale=self.scale,
        )
        return y, keys, values

    def expected(self) -> tuple[Float32, States, States]:
        """The reference's, which multiplies what lies beyond a row by 0."""
        places = np.arange(self.keys.shape[2])[:, None] < self.lengths[:, None, None, None]
        past = (np.where(places, side, side.dtype.type(0)) for side in (self.keys, self.values))
        rounds = self.keys.dtype == np.int8
        operator = QUANTIZED_CACHED_ATTENTION if rounds else CACHED_ATTENTION
        y, keys, values = operator.reference(
            *(self.q, self.k, self.v, *past, self.lengths, self.bias),
            num_heads=self.heads,
            scale=self.scale,
        )
        written = np.arange(self.keys.shape[2])[:, None] < (
            self.lengths[:, None, None, None] + self.q.shape[1]
        )
        return (
            y,
            np.where(written, keys, self.keys),
            np.where(written, values, self.values),
        )

    def row(self, row: int) -> "Cached":
        """One row alone, in a cache and with a bias that are no larger than it needs."""
        own = slice(row, row + 1)
        used = int(self.lengths[row]) + self.q.shape[1]
        bias = self.bias
        if bias is not None:
            bias = bias[own if len(bias) > 1 else slice(1), ..., :used]
        return replace(
            self,
            q=self.q[own],
            k=self.k[own],
            v=self.v[own],
            keys=self.keys[own, :, :used].copy(),
            values=self.values[own, :, :used].copy(),
            lengths=self.lengths[own],
            bias=bias,
        )

    def token(self, token: int, keys: States, values: States) -> "Cached":
        """One of several tokens, given the cache that those before it left."""
        own, lengths = slice(token, token + 1), self.lengths + np.int32(token)
        bias = None if self.bias is None else self.bias[:, :, own, : int(lengths.max()) + 1]
        q, k, v = (part[:, own] for part in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v, keys=keys, values=values, lengths=lengths, bias=bias)


@dataclass(frozen=True)
class Cross:
    """Arguments of one `CrossAttention`, or with states of int8 `QuantizedCrossAttention`."""

    q: Float32
    keys: States
    values: States
    bias: Float32
    heads: int
    scale: float

    @classmethod
    def random(
        cls,
        lengths: tuple[int, ...],
        *,
        beams: int = 1,
        tokens: int = 1,
        kv_heads: int = 2,
        shared: int = 1,
        width: int = 16,
        padding: int = 0,
        seed: int = 0,
    ) -> "Cross":
        sources, states, heads = len(lengths), max(lengths) + padding, kv_heads * shared
        shape = (sources, kv_heads, states, width)
        visible = np.arange(states) < np.array(lengths)[:, None]
        bias = np.where(visible, draw(sources, states, seed=seed + 4), np.float32(-1e4))
        return cls(
            draw(sources * beams, tokens, heads * width, seed=seed + 1),
            draw(*shape, seed=seed + 2),
            draw(*shape, seed=seed + 3),
            bias,
            heads,
            width**-0.5,
        )

    def rounded(self) -> "Cross":
        """The same to states of int8."""
        keys, values = quantize_states(self.keys), quantize_states(self.values)
        return replace(self, keys=keys, values=values)

    def run(self, native: Kernels) -> Float32:
        return native.cross_attention(
            *(self.q, self.keys, self.values, self.bias), num_heads=self.heads, scale=self.scale
        )

    def expected(self) -> Float32:
        rounds = self.keys.dtype == np.int8
        operator = QUANTIZED_CROSS_ATTENTION if rounds else CROSS_ATTENTION
        y: Float32 = operator.reference(
            *(self.q, self.keys, self.values, self.bias), num_heads=self.heads, scale=self.scale
        )
        return y

    def row(self, row: int, states: int) -> "Cross":
        """One row alone with its source, cut to so many states."""
        source = row // (len(self.q) // len(self.keys))
        return replace(
            self,
            q=self.q[row : row + 1],
            keys=self.keys[source : source + 1, :, :states],
            values=self.values[source : source + 1, :, :states],
            bias=self.bias[source : source + 1, :states],
        )


@dataclass(frozen=True)
class Encoder:
    """Arguments of one `EncoderAttention`."""

    q: Float32
    k: Float32
    v: Float32
    lengths: NDArray[np.int32]
    bias: Float32 | None
    heads: int
    scale: float

    @classmethod
    def random(
        cls,
        lengths: tuple[int, ...],
        *,
        kv_heads: int = 2,
        shared: int = 1,
        width: int = 16,
        padding: int = 0,
        farthest: int | None = None,
        seed: int = 0,
    ) -> "Encoder":
        """Random arguments, with a bias for distances up to `farthest`."""
        tokens, heads = max(lengths) + padding, kv_heads * shared
        q, k, v = (
            draw(len(lengths), tokens, count * width, seed=seed + part)
            for part, count in enumerate((heads, kv_heads, kv_heads))
        )
        for row, length in enumerate(lengths):
            # What lies beyond a row must not be read, not even to be multiplied by 0.
            for side in (q, k, v):
                side[row, length:] = np.nan
        bias = None if farthest is None else draw(2 * farthest + 1, heads, seed=seed + 3)
        return cls(q, k, v, np.array(lengths, np.int32), bias, heads, width**-0.5)

    def run(self, native: Kernels) -> Float32:
        return native.encoder_attention(*self._arguments(), num_heads=self.heads, scale=self.scale)

    def expected(self) -> Float32:
        y: Float32 = ENCODER_ATTENTION.reference(
            *self._arguments(), num_heads=self.heads, scale=self.scale
        )
        return y

    def row(self, row: int) -> "Encoder":
        """One row alone, without padding."""
        own, there = slice(row, row + 1), slice(int(self.lengths[row]))
        q, k, v = (side[own, there] for side in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v, lengths=self.lengths[own])

    def _arguments(
        self,
    ) -> tuple[Float32, Float32, Float32, NDArray[np.int32], Float32 | None]:
        return self.q, self.k, self.v, self.lengths, self.bias
