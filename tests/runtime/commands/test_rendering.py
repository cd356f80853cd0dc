"""Results as lines and as JSON."""

import dataclasses

import pytest

from drl.runtime.commands.rendering import result_lines, result_record
from drl.runtime.results import GenerationResult, Timings


def result(text: str, *alternatives: GenerationResult) -> GenerationResult:
    return GenerationResult(
        text=text,
        tokens=[3, 4],
        prefix_tokens=1,
        logprobs=None,
        top_logprobs=None,
        score=-0.51234567,
        path="fast",
        path_logits=None,
        experts=None,
        finish_reason="length",
        prompt_tokens=5,
        timings=Timings(0.001, 0.002, 0.003, 0.004, 2),
        alternatives=alternatives,
    )


def test_lines_can_be_counted_where_a_beam_search_found_fewer() -> None:
    found = result("one", result("two"))
    assert result_lines(found, 4, notes=False) == ["one", "two", "", ""]
    assert result_lines(result("one"), 1, notes=False) == ["one"]
    first, second = result_lines(found, 4, notes=True)
    assert first == "1. one  \x1b[2m[fast, 2 tokens, score -0.512, 4.0 ms]\x1b[0m"
    assert second.startswith("2. two  ")


@pytest.mark.parametrize(("reason", "noted"), [("time", True), ("eos", False)])
def test_a_note_tells_when_time_ran_out(reason: str, noted: bool) -> None:
    ended = dataclasses.replace(result("one"), finish_reason=reason)  # type: ignore[arg-type]
    (line,) = result_lines(ended, 1, notes=True)
    assert ("out of time" in line) is noted


def test_a_record_leaves_out_what_was_not_asked_for() -> None:
    record = result_record("hi", dataclasses.replace(result("one"), prefix_tokens=0, score=None))
    assert list(record) == [
        *("prompt", "text", "tokens", "path", "finish_reason", "prompt_tokens"),
        *("milliseconds", "steps"),
    ]


def test_a_record_tells_each_result_s_own() -> None:
    other = dataclasses.replace(result("two"), logprobs=[-0.5], top_logprobs=[[(3, -0.5)]])
    record = result_record("hi", result("one", other))
    assert record["score"] == -0.512346
    assert record["prefix_tokens"] == 1
    assert record["alternatives"] == [
        {
            "text": "two",
            "tokens": [3, 4],
            "finish_reason": "length",
            "score": -0.512346,
            "logprobs": [-0.5],
            "top_logprobs": [[[3, -0.5]]],
        }
    ]
