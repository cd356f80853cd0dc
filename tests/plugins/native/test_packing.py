"""Packed weights: what goes in comes out, the layout is the documented one, damage is noticed."""

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from drl.plugins.native import Kernels, NativeLibraryError
from tests.plugins.native.sets import needs_library

pytestmark = needs_library

HEADER = struct.Struct("<8sII6Q56sQ")


def quantized(*shape: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    random = np.random.default_rng(list(shape))
    weights = random.integers(-127, 128, shape).astype(np.int8)
    return weights, random.random(shape[:-1], np.float32)


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


@pytest.mark.parametrize("shape", [(1, 1), (32, 4), (33, 5), (100, 67), (3, 40, 9), (8, 31, 64)])
def test_packed_weights_unpack_to_themselves(shape: tuple[int, ...]) -> None:
    weights, scales = quantized(*shape)
    packed = Kernels().pack_int8(weights, scales)
    got_weights, got_scales = Kernels().unpack(packed)
    assert Kernels().shape(packed) == (1, *shape)[-3:]
    assert np.array_equal(got_weights.reshape(shape), weights)
    assert np.array_equal(got_scales.reshape(shape[:-1]), scales)


def test_the_layout_is_the_documented_one() -> None:
    weights, scales = quantized(3, 70, 10)
    packed = Kernels().pack_int8(weights, scales)
    magic, version, width, *numbers, reserved, checksum = HEADER.unpack(packed[:128].tobytes())
    padded_scales = 3 * 96 * 4
    assert (magic, version, width, reserved) == (b"DRLINT8\n", 1, 32, bytes(56))
    assert numbers == [3, 70, 10, 128, 128 + padded_scales, packed.nbytes]
    assert checksum == fnv1a(packed[:120].tobytes())
    stored_scales = packed[128 : 128 + padded_scales].view(np.float32).reshape(3, 96)
    assert np.array_equal(stored_scales[:, :70], scales)
    assert not stored_scales[:, 70:].any()
    stored = packed[128 + padded_scales :].reshape(3, 3, 3, 32, 4).astype(np.int16) - 128
    matrices = stored.transpose(0, 1, 3, 2, 4).reshape(3, 96, 12)
    assert np.array_equal(matrices[:, :70, :10], weights)
    assert not matrices[:, 70:].any()
    assert not matrices[:, :, 10:].any()


def test_quantisation_is_symmetric_and_errs_by_half_a_step() -> None:
    weights = np.random.default_rng(0).standard_normal((50, 33)).astype(np.float32)
    weights[7] = 0
    weights[8] = 1e-42
    values, scales = Kernels().unpack(Kernels().pack(weights))
    empty = [7, 8]  # a column of zeros, and one too small to have a scale
    assert not values[0, empty].any()
    assert not scales[0, empty].any()
    assert (np.delete(np.abs(values[0]).max(axis=1), empty) == 127).all()
    error = np.abs(values[0] * scales[0][:, None] - weights)
    assert (error <= scales[0][:, None] * 0.5001 + 1e-40).all()
    np.testing.assert_allclose(scales[0][:7], np.abs(weights[:7]).max(axis=1) / 127, rtol=1e-6)


def test_packing_the_same_weights_gives_the_same_bytes() -> None:
    weights = np.random.default_rng(0).standard_normal((33, 9)).astype(np.float32)
    assert np.array_equal(Kernels().pack(weights), Kernels().pack(weights))


@pytest.mark.parametrize("byte", range(128))
def test_a_damaged_header_is_refused(byte: int) -> None:
    packed = Kernels().pack_int8(*quantized(40, 9))
    packed[byte] ^= 0x10
    with pytest.raises(NativeLibraryError, match=r"damaged|newer"):
        Kernels().shape(packed)


def test_a_newer_layout_is_recognised() -> None:
    packed = Kernels().pack_int8(*quantized(40, 9))
    packed[8] = 2
    with pytest.raises(NativeLibraryError, match="packed by a newer version of DRL; upgrade"):
        Kernels().shape(packed)


def test_sizes_that_were_changed_with_their_checksum_are_refused() -> None:
    packed = Kernels().pack_int8(*quantized(40, 9))
    packed[24:32].view(np.uint64)[:] = 2**60
    packed[120:128].view(np.uint64)[:] = fnv1a(packed[:120].tobytes())
    with pytest.raises(NativeLibraryError, match="damaged or cut short"):
        Kernels().shape(packed)


@pytest.mark.parametrize("length", [0, 1, 127, 128, -1])
def test_weights_that_were_cut_short_are_refused(length: int) -> None:
    packed = Kernels().pack_int8(*quantized(40, 9))
    with pytest.raises(NativeLibraryError, match="damaged or cut short"):
        Kernels().shape(packed[:length])


def test_weights_at_an_odd_address_are_refused() -> None:
    packed = Kernels().pack_int8(*quantized(40, 9))
    shifted = np.empty(packed.size + 1, np.uint8)[1:]
    shifted[:] = packed
    with pytest.raises(NativeLibraryError, match="not aligned"):
        Kernels().shape(shifted)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_and_scales_must_be_finite(value: float) -> None:
    weights, scales = quantized(4, 9)
    with pytest.raises(NativeLibraryError, match="NaN or infinity"):
        Kernels().pack(np.where(weights == weights[2, 3], value, weights))
    scales[1] = value
    with pytest.raises(NativeLibraryError, match="NaN or infinity"):
        Kernels().pack_int8(weights, scales)


def test_weights_that_cannot_be_packed_are_refused() -> None:
    weights, scales = quantized(4, 9)
    with pytest.raises(NativeLibraryError, match="do not fit"):
        Kernels().pack_int8(weights, scales[:3])
    with pytest.raises(NativeLibraryError, match="cannot be packed"):
        Kernels().pack(np.zeros((0, 4), np.float32))
    with pytest.raises(NativeLibraryError, match="cannot be packed"):
        Kernels().pack(np.zeros((1, 131073), np.float32))
    with pytest.raises(NativeLibraryError, match=r"must be \[N, K\]"):
        Kernels().pack(np.zeros(4, np.float32))
    weights[2, 3] = -128
    with pytest.raises(NativeLibraryError, match="not possible"):
        Kernels().pack_int8(weights, scales)
