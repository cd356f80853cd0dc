"""Optimisation profiles from named dimensions."""

import pytest

from drl.export.tensorrt.profiles import profiles_of
from drl.export.tensorrt.sizes import Dimensions, Range
from drl.runtime.backends.tensorrt.manifest import Shapes
from drl.runtime.backends.tensorrt.sizes import kept_multiple
from drl.runtime.errors import ExportError
from drl.runtime.manifest import PathInfo, TensorInfo

SIZES = Dimensions(
    batch=Range(1, 8, 32),
    sources=Range(1, 2, 8),
    source=Range(1, 10, 21),
    new_tokens=Range(1, 4, 16),
    capacity=64,
)
HALF = PathInfo("half", (0, 1), 1, 0.5, 0.5)
DECODER = (
    TensorInfo("tokens", "int64", ("B", "T")),
    TensorInfo("cross_k.0", "float16", ("R", 2, "K", 16)),
    TensorInfo("past_k.0", "float16", ("B", 2, 64, 16)),
)


def test_an_encoder_has_one_profile_over_sources() -> None:
    inputs = (
        TensorInfo("source_tokens", "int64", ("B", "S")),
        TensorInfo("source_lengths", "int32", ("B",)),
    )
    (profile,) = profiles_of("encoder", None, inputs, SIZES)
    assert profile.dims == {"B": (1, 2, 8), "S": (1, 10, 21)}
    assert profile.shapes["source_tokens"] == Shapes((1, 1), (2, 10), (8, 21))
    assert profile.shapes["source_lengths"] == Shapes((1,), (2,), (8,))


def test_a_bridge_has_one_profile_over_sources() -> None:
    inputs = (TensorInfo("encoder_states", "float16", ("B", "S", 64)),)
    (profile,) = profiles_of("bridge.half", HALF, inputs, SIZES)
    assert profile.shapes["encoder_states"] == Shapes((1, 1, 64), (2, 10, 64), (8, 21, 64))


def test_a_decoder_has_a_profile_for_prefill_and_one_for_steps() -> None:
    prefill, step = profiles_of("decoder.half", HALF, DECODER, SIZES)
    assert (prefill.name, step.name) == ("prefill", "step")
    assert prefill.dims == {"B": (1, 8, 32), "R": (1, 2, 8), "K": (1, 5, 16), "T": (1, 4, 16)}
    assert step.dims == prefill.dims | {"T": (1, 1, 1)}
    assert step.shapes["tokens"] == Shapes((1, 1), (8, 1), (32, 1))
    assert prefill.shapes["tokens"] == Shapes((1, 1), (8, 4), (32, 16))
    assert step.shapes["cross_k.0"] == Shapes((1, 2, 1, 16), (2, 2, 5, 16), (8, 2, 16, 16))
    assert step.shapes["past_k.0"] == Shapes((1, 2, 64, 16), (8, 2, 64, 16), (32, 2, 64, 16))


def test_the_most_kept_states_are_rounded_up_as_the_runtime_rounds_them() -> None:
    for heads, head_dim in ((2, 16), (3, 5), (8, 64)):
        inputs = (TensorInfo("cross_k.0", "float16", ("R", heads, "K", head_dim)),)
        (prefill, _) = profiles_of("decoder.half", HALF, inputs, SIZES)
        least, usual, most = prefill.dims["K"]
        assert (least, usual) == (1, 5)
        assert most >= 11
        assert most % kept_multiple(heads, head_dim) == 0


def test_a_dimension_without_bounds_is_named() -> None:
    inputs = (TensorInfo("odd", "int64", ("B", "Q")),)
    with pytest.raises(ExportError, match="graph encoder has a dimension 'Q'"):
        profiles_of("encoder", None, inputs, SIZES)
