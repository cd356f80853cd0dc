"""Named dimensions: reading them, defaults, and holding them against a bundle."""

import math

import pytest

from drl.export.model.config import KEEP_DENOMINATOR
from drl.export.tensorrt.sizes import Range, Sizes, fit, kept_states
from drl.runtime.errors import ExportError
from drl.runtime.manifest import CacheInfo, Limits

LIMITS = Limits(vocab_size=100, max_source_length=48, max_target_length=32)
CACHE = CacheInfo(decoder_layers=4, kv_heads=2, head_dim=16, dtype="float32")


def test_a_range_is_three_sizes_or_one() -> None:
    assert Range.parse("1,8,32") == Range(1, 8, 32)
    assert Range.parse(" 2, 2 ,3") == Range(2, 2, 3)
    assert Range.parse("7") == Range(7, 7, 7)
    assert str(Range(1, 8, 32)) == "1,8,32"


@pytest.mark.parametrize("text", ["0", "0,1,2", "3,2,4", "1,5,4", "8,4,2"])
def test_sizes_must_ascend_from_1(text: str) -> None:
    with pytest.raises(ValueError, match="does not ascend from 1"):
        Range.parse(text)


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "a", "1,b,3", "-1", "1.5", "1,,3"])
def test_anything_else_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number nor MIN,OPT,MAX"):
        Range.parse(text)


def test_defaults_fit_the_bundle() -> None:
    found = fit(Sizes(), LIMITS, CACHE)
    assert found.source == Range(1, 48, 48)
    assert found.new_tokens == Range(1, 16, 32)
    assert found.capacity == 32
    assert found.batch == Range(1, 8, 32)
    assert found.sources == Range(1, 8, 32)


def test_defaults_follow_a_smaller_cache() -> None:
    assert fit(Sizes(capacity=4), LIMITS, CACHE).new_tokens == Range(1, 4, 4)


def test_a_default_cache_begins_its_rows_where_tensorrt_takes_them() -> None:
    odd = Limits(vocab_size=100, max_source_length=48, max_target_length=31)
    assert fit(Sizes(), odd, CACHE).capacity == 28
    wide = CacheInfo(decoder_layers=4, kv_heads=2, head_dim=64, dtype="float32")
    assert fit(Sizes(), odd, wide).capacity == 31
    assert fit(Sizes(capacity=7), odd, wide).capacity == 7


@pytest.mark.parametrize(
    ("batch", "beams", "sources"),
    [
        ("1,8,32", "1", "1,8,32"),
        ("4,16,64", "4", "1,4,16"),
        ("1,8,32", "1,4,8", "1,2,32"),
        ("8,8,32", "1,2,8", "1,4,32"),
        ("1,1,1", "1", "1,1,1"),
    ],
)
def test_sources_follow_from_beams(batch: str, beams: str, sources: str) -> None:
    found = fit(Sizes(batch=Range.parse(batch), beams=Range.parse(beams)), LIMITS, CACHE)
    assert str(found.sources) == sources


def test_sources_can_be_said() -> None:
    found = fit(Sizes(batch=Range(4, 8, 16), sources=Range(1, 2, 4)), LIMITS, CACHE)
    assert found.sources == Range(1, 2, 4)


@pytest.mark.parametrize(
    ("sizes", "fragments"),
    [
        (Sizes(capacity=33), ["--cache 33", "32 target positions"]),
        (Sizes(capacity=0), ["--cache 0"]),
        (Sizes(capacity=30), ["--cache 30 is no multiple of 4", "2 heads of 16"]),
        (Sizes(source=Range(1, 8, 49)), ["--source 1,8,49", "48 source positions"]),
        (Sizes(new_tokens=Range(1, 8, 33)), ["--new-tokens 1,8,33", "cache of 32"]),
        (Sizes(capacity=8, new_tokens=Range(1, 8, 9)), ["cache of 8"]),
        (Sizes(batch=Range(1, 4, 30), beams=Range(4, 4, 4)), ["30 rows", "7 sources", "most"]),
        (Sizes(batch=Range(1, 2, 3), beams=Range(4, 4, 4)), ["--beams 4,4,4 exceeds"]),
        (Sizes(batch=Range(1, 3, 4), sources=Range(1, 2, 4)), ["3 rows", "2 sources", "usual"]),
        (Sizes(capacity=99, source=Range(1, 1, 99)), ["--cache 99", "--source 1,1,99"]),
    ],
)
def test_what_does_not_fit_is_named_all_at_once(sizes: Sizes, fragments: list[str]) -> None:
    with pytest.raises(ExportError) as caught:
        fit(sizes, LIMITS, CACHE)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_kept_states_are_counted_as_the_bridge_counts_them() -> None:
    for thousandths in (1, 125, 500, 750, 999, 1000):
        for length in (1, 2, 3, 47, 1000):
            exact = math.ceil(thousandths * length / KEEP_DENOMINATOR)
            assert kept_states(thousandths / KEEP_DENOMINATOR, length) == exact
