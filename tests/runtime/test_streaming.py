"""Text while it grows: the pieces, joined, are the text, whatever the search."""

import asyncio
import gc
import threading
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from drl.runtime import Engine, GenerationConfig, GenerationResult, Piece, RequestError
from tests.runtime.comparing import (
    MODES,
    assert_idle,
    assert_same,
    cache_bytes,
    hooked,
    rows_in_use,
)
from tests.runtime.toy import toy_engine

pytestmark = pytest.mark.usefixtures("ranking")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return toy_engine(tmp_path)


def assert_joins_to(pieces: list[Piece], expected: GenerationResult) -> None:
    """The pieces of each result join to it, and the last one holds it."""
    for index, whole in enumerate((expected, *expected.alternatives)):
        own = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.text for piece in own) == whole.text
        assert [token for piece in own for token in piece.tokens] == whole.tokens
        finals = [piece for piece in own if piece.result]
        assert len(finals) == 1
        assert finals[0].result is not None
        assert finals[0].finish_reason == whole.finish_reason
        if not index:
            assert_same(finals[0].result, expected)
    assert {piece.index for piece in pieces} == set(range(1 + len(expected.alternatives)))


@pytest.mark.parametrize("stop_strings", [(), ("q", "zz", "0\\")], ids=["whole", "stops"])
@pytest.mark.parametrize("prefix", [None, "a prefix: "])
@pytest.mark.parametrize("mode", MODES)
def test_pieces_join_to_the_text_of_generate(
    engine: Engine, mode: str, prefix: str | None, stop_strings: tuple[str, ...]
) -> None:
    for prompt in ("ab ab", "中国 c", "xyz"):
        options = {**MODES[mode], "stop_strings": stop_strings, "max_new_tokens": 25}
        (expected,) = engine.generate([prompt], prefixes=[prefix], **options)
        pieces = list(engine.stream(prompt, prefix=prefix, **options))
        assert_joins_to(pieces, expected)
        called: list[tuple[int, Piece]] = []
        (found,) = engine.generate(
            [prompt],
            prefixes=[prefix],
            on_piece=lambda number, piece: called.append((number, piece)),  # noqa: B023
            **options,
        )
        assert_same(found, expected)
        assert_joins_to([piece for _, piece in called], expected)
    assert_idle(engine)


def test_sampled_streams_join_with_many_seeds(engine: Engine) -> None:
    ends = set()
    for seed in range(20):
        config = GenerationConfig(temperature=2.0, seed=seed, stop_strings=["q", "zz"])
        (expected,) = engine.generate(["ab ab"], config)
        assert_joins_to(list(engine.stream("ab ab", config)), expected)
        ends.add(expected.finish_reason)
    assert ends >= {"eos", "stop"}


def test_a_beam_search_streams_what_its_beams_agree_on(engine: Engine) -> None:
    early = 0
    for prompt in ("one", "two", "three", "four"):
        pieces = list(engine.stream(prompt, num_beams=3, min_new_tokens=30))
        assert len(pieces[-1].result.alternatives if pieces[-1].result else [1]) == 0
        early += sum(bool(piece.tokens) for piece in pieces[:-1])
    assert early > 8


def test_pieces_of_several_prompts_come_with_their_numbers(engine: Engine) -> None:
    prompts = ["one", "two", "three", "four", "five", "six"]
    expected = engine.generate(prompts)
    called: list[tuple[int, Piece]] = []
    engine.generate(prompts, on_piece=lambda *each: called.append(each))
    for number, result in enumerate(expected):
        assert_joins_to([piece for index, piece in called if index == number], result)
    order = [number for number, _ in called]
    assert order != sorted(order)  # they grow together


def test_run_streams_as_well(engine: Engine) -> None:
    requests = [engine.request(prompt) for prompt in ("one", "two", "three")]
    called: list[tuple[int, Piece]] = []
    results = dict(engine.run(requests, on_piece=lambda *each: called.append(each)))
    for number, result in results.items():
        assert_joins_to([piece for index, piece in called if index == number], result)


def test_streams_may_be_interleaved_and_left_early(engine: Engine) -> None:
    config = GenerationConfig(min_new_tokens=20)
    expected = [engine.generate([text], config)[0].text for text in ("one", "two")]
    streams = [engine.stream(text, config) for text in ("one", "two")]
    pieces = zip_longest(*streams)
    texts = ["".join(piece.text for piece in side if piece) for side in zip(*pieces, strict=True)]
    assert texts == expected
    for mode in MODES.values():
        abandoned = engine.stream("three", min_new_tokens=40, **mode)
        next(abandoned)
        abandoned.close()  # type: ignore[attr-defined]
        assert_idle(engine)
        assert cache_bytes(engine) == 0


@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_stream_that_others_advance_gives_every_token(tmp_path: Path, tokenizer: bool) -> None:
    config = GenerationConfig(min_new_tokens=30, max_new_tokens=30)
    with toy_engine(tmp_path, tokenizer=tokenizer) as engine:
        (expected,) = engine.generate([[5, 6]], config)
        pieces = []
        for piece in engine.stream([5, 6], config):
            pieces.append(piece)
            engine.generate([[7]], GenerationConfig(max_new_tokens=3))
    assert_joins_to(pieces, expected)
    assert len(pieces) > 3


def test_a_stream_forgotten_during_a_step_is_dropped(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path)
    forgotten = [engine.stream([5, 6], GenerationConfig(min_new_tokens=40))]
    next(forgotten[0])

    def collect(step: int) -> None:
        if forgotten:
            forgotten.clear()
            gc.collect()

    backend.before_step = collect
    found: list[GenerationResult] = []
    thread = threading.Thread(target=lambda: found.extend(engine.generate([[7]])), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert_same(found[0], engine.generate([[7]])[0])
    assert rows_in_use(engine) == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda engine: engine.generate([[7]], max_new_tokens=1),
        lambda engine: list(engine.stream([7], max_new_tokens=1)),
        lambda engine: engine.score([[7]], [[8]]),
        lambda engine: asyncio.run(engine.agenerate([[7]], max_new_tokens=1)),
    ],
    ids=["generate", "stream", "score", "agenerate"],
)
def test_what_is_forgotten_during_the_last_step_of_others_is_dropped(
    tmp_path: Path, use: Callable[[Engine], object]
) -> None:
    engine, backend = hooked(tmp_path)
    forgotten = [engine.stream([5, 6], GenerationConfig(min_new_tokens=40))]
    next(forgotten[0])
    backend.before_step = lambda step: forgotten.clear()
    use(engine)
    assert not forgotten
    assert_idle(engine)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("of the caller")])
@pytest.mark.parametrize("mode", ["greedy", "samples", "beams"])
def test_an_error_in_a_callback_ends_its_call_alone(
    tmp_path: Path, error: BaseException, mode: str
) -> None:
    engine = toy_engine(tmp_path, max_batch_size=16)
    options = {**MODES[mode], "min_new_tokens": 20}
    expected = engine.generate(["one", "two", "six"], **options)
    other = engine.stream("other", min_new_tokens=40)
    first = next(other)

    def on_piece(number: int, piece: Piece) -> None:
        raise error

    with pytest.raises(type(error)):
        engine.generate(["one", "two", "six"], on_piece=on_piece, **options)
    assert rows_in_use(engine) == 1
    rest = [first, *other]
    assert_joins_to(rest, engine.generate(["other"], min_new_tokens=40)[0])
    assert_idle(engine)
    for ours, theirs in zip(
        engine.generate(["one", "two", "six"], **options), expected, strict=True
    ):
        assert_same(ours, theirs)


def test_a_wrong_request_is_refused_by_the_call(engine: Engine) -> None:
    wrong: list[dict[str, Any]] = [{"num_beams": 0}, {"path": "no"}, {"num_bems": 2}]
    for options in wrong:
        with pytest.raises(RequestError):
            engine.stream("ab", **options)


def test_a_callback_may_use_the_engine(engine: Engine) -> None:
    (expected,) = engine.generate(["inner"])
    found: list[GenerationResult] = []

    def on_piece(number: int, piece: Piece) -> None:
        if len(found) < 2:
            found.extend(engine.generate(["inner"]))

    engine.generate(["outer"], on_piece=on_piece, min_new_tokens=10)
    assert len(found) == 2
    for result in found:
        assert_same(result, expected)


def test_a_step_is_taken_for_each_piece(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, tokenizer=False)
    steps: list[int] = []
    for _ in engine.stream([5, 6], min_new_tokens=10, max_new_tokens=10):
        steps.append(len(backend.stepped_rows))
    assert steps == list(range(1, 11))
