"""Limits of a backend that are tighter than the model's: requests are held to them beforehand."""

from pathlib import Path

import pytest

from drl.runtime import Engine, RequestError
from drl.runtime.backends.limits import BackendLimits, Limit
from tests.runtime.comparing import assert_same, random_prompts
from tests.runtime.toy import ToyBackend, toy_bundle, toy_engine

LIMITS = BackendLimits(
    rows=Limit(3, "build for more rows"),
    source_length=Limit(12, "build for longer sources"),
    target_length=Limit(10, "build for a longer cache"),
)


def limited(folder: Path, limits: BackendLimits, max_batch_size: int = 32) -> Engine:
    bundle = toy_bundle(folder)
    backend = ToyBackend(bundle.manifest)
    backend.limits = limits
    return Engine(bundle, backend, max_batch_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompts": [list(range(2, 15))]},
            "has 13 tokens and the model reads 12; build for longer",
        ),
        ({"num_beams": 4}, "num_beams 4 exceeds the engine's max_batch_size of 3; build for more"),
        (
            {"max_new_tokens": 11},
            "max_new_tokens 11 exceeds the model's cache of 10; build for a longer",
        ),
        (
            {"prefixes": [[5] * 11]},
            "has 11 tokens and the model reads 10; build for a longer cache",
        ),
    ],
)
def test_a_request_beyond_the_backend_is_refused_with_what_raises_the_limit(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    engine = limited(tmp_path, LIMITS)
    given = {"prompts": [[5, 6]], **options}
    with pytest.raises(RequestError, match=message):
        engine.generate(**given)  # type: ignore[arg-type]


def test_the_callers_own_limit_stands_where_it_is_tighter(tmp_path: Path) -> None:
    engine = limited(tmp_path, LIMITS, max_batch_size=2)
    with pytest.raises(RequestError, match=r"max_batch_size of 2; open the engine with a larger"):
        engine.generate([[5]], num_beams=3)


def test_no_more_rows_run_than_the_backend_takes(tmp_path: Path) -> None:
    prompts = [prompt[:12] for prompt in random_prompts(9)]
    expected = toy_engine(tmp_path).generate(prompts, max_new_tokens=10)
    engine = limited(tmp_path, LIMITS)
    results = engine.generate(prompts, max_new_tokens=10)
    for found, wanted in zip(results, expected, strict=True):
        assert_same(found, wanted)
    backend = engine.backend
    assert isinstance(backend, ToyBackend)
    assert max(rows for _, rows in backend.stepped_rows) == 3
    assert max(backend.encoded_rows) <= 3


def test_as_many_tokens_come_as_the_backends_cache_holds(tmp_path: Path) -> None:
    engine = limited(tmp_path, LIMITS)
    lengths = [len(r.tokens) for r in engine.generate([[5]], min_new_tokens=10)]
    assert lengths == [10]
    assert engine.score([[5]], [[6] * 9])[0].tokens[-1] == 1
    with pytest.raises(RequestError, match="has 11 tokens with its end and the model reads 10"):
        engine.score([[5]], [[6] * 10])
