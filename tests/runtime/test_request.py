"""Requests that cannot be served are refused before any work is done for them."""

from pathlib import Path

import numpy as np
import pytest

from drl.runtime import Engine, GenerationConfig, RequestError
from tests.runtime.toy import VOCAB_SIZE, ToyBackend, toy_bundle, toy_engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return toy_engine(tmp_path)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["ok", ""], "prompt 1 is empty"),
        (["ok", "  \n"], "prompt 1 is empty"),
        ([[5], []], "prompt 1 is empty"),
        ([np.array([], np.int64)], "prompt 0 is empty"),
        ([[5, VOCAB_SIZE]], f"prompt 0 has token id {VOCAB_SIZE}; the vocabulary is 0 to"),
        ([[-1]], "prompt 0 has token id -1"),
        ([[5], list(range(2, 43))], "prompt 1 has 41 tokens and the model reads 40"),
        (["x" * 200], "prompt 0 has 201 tokens"),
        ([[True, False]], "prompt 0 holds True"),
        ([[1.0]], "prompt 0 holds 1.0"),
        ([None], "prompt 0 must be a string or a list of token ids, not NoneType"),
        ([np.array([1.5])], "one-dimensional array of integers, not of float64"),
        ([np.array([[1]])], "one-dimensional array of integers"),
        ([b"bytes"], "not bytes"),
        ([4, 5], "prompt 0 must be a string or a list of token ids, not int"),
        ("text", "prompts must be a list of prompts, not str"),
        (["\ud800"], "prompt 0: the text is not valid Unicode"),
    ],
)
def test_bad_prompts_are_refused_before_any_work(
    tmp_path: Path, prompts: object, message: str
) -> None:
    bundle = toy_bundle(tmp_path)
    backend = ToyBackend(bundle.manifest)
    with Engine(bundle, backend) as engine, pytest.raises(RequestError, match=message):
        engine.generate(prompts)  # type: ignore[arg-type]
    assert backend.encoded_rows == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "ful"}, "no path 'ful'; did you mean 'full'.*auto, fast, mid, full"),
        ({"path": 3}, "no path 3"),
        ({"path": -1}, "no path -1"),
        ({"path": True}, "must be a name or an index, not bool"),
        ({"path": None}, "must be a name or an index"),
        ({"budget": 1.5}, "budget must be a number from 0 to 1"),
        ({"budget": float("nan")}, "budget must be a number"),
        ({"budget": "1"}, "budget must be a number"),
        ({"budget": True}, "budget must be a number"),
        ({"budget": 10**400}, "budget must be a number from 0 to 1"),
        ({"config": {"max_new_tokens": 3}}, "config must be a GenerationConfig"),
        ({"config": [GenerationConfig()] * 2}, "2 configs for 1 prompts"),
        ({"config": GenerationConfig(max_new_tokens=49)}, "max_new_tokens 49 exceeds .* of 48"),
        ({"config": GenerationConfig(min_new_tokens=49)}, "min_new_tokens 49 exceeds"),
        ({"config": GenerationConfig(stop_token_ids=[10**6])}, "stop_token_ids: 1000000"),
    ],
)
def test_bad_options_are_refused(engine: Engine, options: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        engine.generate([[5]], **options)
    with pytest.raises(RequestError):
        engine.stream([5], **options)


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    with toy_engine(tmp_path, tokenizer=False) as engine:
        with pytest.raises(RequestError, match="prompt 1 is text and the bundle has no tokenizer"):
            engine.generate([[4], "text"])
        (result,) = engine.generate([[4, 5]])
        assert result.text == ""
        pieces = list(engine.stream([4, 5]))
        assert [token for piece in pieces for token in piece.tokens] == result.tokens
