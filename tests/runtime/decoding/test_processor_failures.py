"""A request whose processors go wrong fails by itself, and its batch-mates notice nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl.runtime import (
    DecodingState,
    DrlError,
    Engine,
    GenerationConfig,
    LogitsProcessor,
    RequestError,
)
from tests.runtime.comparing import (
    MODES,
    assert_idle,
    assert_same,
    hooked,
    random_prompts,
    rows_in_use,
)
from tests.runtime.toy import toy_engine

pytestmark = pytest.mark.usefixtures("ranking")


class FromThirdToken:
    """Does nothing at first, then what its subclass does."""

    def __call__(self, state: DecodingState, scores: np.ndarray) -> Any:
        return self.go_wrong(scores) if state.lengths.max() > 2 else scores

    def go_wrong(self, scores: np.ndarray) -> Any:
        raise NotImplementedError


class Raising(FromThirdToken):
    def go_wrong(self, scores: np.ndarray) -> Any:
        raise ValueError("of\nmine")


class Interfering(FromThirdToken):
    def go_wrong(self, scores: np.ndarray) -> Any:
        scores[...] = np.nan
        raise LookupError("late")


class WrongShape(FromThirdToken):
    def go_wrong(self, scores: np.ndarray) -> Any:
        return scores[:, :5]


class WrongType(FromThirdToken):
    def go_wrong(self, scores: np.ndarray) -> Any:
        return scores.astype(np.float64)


class Nothing(FromThirdToken):
    def go_wrong(self, scores: np.ndarray) -> Any:
        return None


class NotANumber(FromThirdToken):
    def go_wrong(self, scores: np.ndarray) -> Any:
        scores[:, 7] = np.nan
        return scores


class BarsAll(FromThirdToken):
    def go_wrong(self, scores: np.ndarray) -> Any:
        scores[...] = -np.inf
        return scores


WRONG: list[tuple[type[FromThirdToken], str]] = [
    (Raising, "processor Raising failed with ValueError: of mine"),
    (Interfering, "processor Interfering failed with LookupError: late"),
    (WrongShape, "processor WrongShape returned scores of shape"),
    (WrongType, "processor WrongType returned float64 scores"),
    (Nothing, "processor Nothing returned None"),
    (NotANumber, "processor NotANumber returned NaN"),
    (BarsAll, "no token is left to choose: MinNewTokens, BarsAll together bar"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "message"), WRONG, ids=[kind.__name__ for kind, _ in WRONG])
def test_it_fails_alone_and_at_once(
    tmp_path: Path, kind: type[FromThirdToken], message: str, mode: str
) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=12)
    options = {**MODES[mode], "path": "full", "max_new_tokens": 8, "min_new_tokens": 4}
    prompts = random_prompts(3)
    expected = [engine.generate([prompt], **options)[0] for prompt in prompts]
    requests = [
        engine.request(prompt, processors=[kind()] if number == 1 else [], **options)
        for number, prompt in enumerate(prompts)
    ]
    failures: dict[int, DrlError] = {}
    backend.stepped_rows.clear()
    found = dict(engine.run(requests, on_error=failures.__setitem__))
    assert list(failures) == [1]
    assert isinstance(failures[1], RequestError)
    assert str(failures[1]).startswith(message)
    assert "\n" not in str(failures[1])
    for number in (0, 2):
        assert_same(found[number], expected[number])
    rows = [count for _, count in backend.stepped_rows]
    assert rows[:4] == [rows[0]] * 3 + [rows[0] // 3 * 2]  # the others go on from then
    assert_idle(engine)


@pytest.mark.parametrize(("kind", "message"), WRONG, ids=[kind.__name__ for kind, _ in WRONG])
def test_generate_names_the_prompt(
    tmp_path: Path, kind: type[FromThirdToken], message: str
) -> None:
    engine = toy_engine(tmp_path)
    bar = GenerationConfig(min_new_tokens=5)
    with pytest.raises(RequestError, match=f"^prompt 0: {message}"):
        engine.generate(["ab", "cd"], bar, processors=[kind()])
    assert_idle(engine)
    with pytest.raises(RequestError, match=f"^{message}"):
        list(engine.stream("ab", bar, processors=[kind()]))
    assert_idle(engine)


def test_the_error_leads_to_the_processors_own(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path)
    with pytest.raises(RequestError) as caught:
        engine.generate(["ab"], min_new_tokens=5, processors=[Raising()])
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_sample_that_fails_takes_the_others_of_its_request_along(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, max_batch_size=8)

    def bar_one(state: DecodingState, scores: np.ndarray) -> np.ndarray:
        if state.lengths.max() > 3:
            scores[-1] = -np.inf
        return scores

    options: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 1,
        "num_return_sequences": 4,
        "min_new_tokens": 20,
    }
    request = engine.request("ab", processors=[bar_one], **options)
    failures: dict[int, DrlError] = {}
    assert dict(engine.run([request], on_error=failures.__setitem__)) == {}
    assert "no token is left" in str(failures[0])
    assert rows_in_use(engine) == 0  # without another step
    assert_idle(engine)


def allow_only(*tokens: int) -> LogitsProcessor:
    def allow(state: DecodingState, scores: np.ndarray) -> np.ndarray:
        changed = np.full_like(scores, -np.inf)
        changed[:, list(tokens)] = scores[:, list(tokens)]
        return changed

    return allow


@pytest.mark.parametrize("mode", ["n-best", "diverse"])
def test_there_may_be_fewer_hypotheses_than_asked_for(tmp_path: Path, mode: str) -> None:
    engine: Engine = toy_engine(tmp_path)
    options = {**MODES[mode], "num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 2}
    # Of one token besides the end there are three texts: "", "x" and "xx".
    (found,) = engine.generate(["ab"], processors=[allow_only(1, 40)], **options)
    texts = [result.tokens for result in (found, *found.alternatives)]
    if mode == "n-best":
        assert sorted(texts) == [[], [40], [40, 40]]
    assert 1 <= len(texts) <= 4
    assert all(set(tokens) <= {40} for tokens in texts)
    scores = [result.score for result in (found, *found.alternatives)]
    assert all(score is not None and score > -1e3 for score in scores)
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]


def test_processors_that_allow_one_text_get_it(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, max_batch_size=8)
    for mode in MODES.values():
        (found,) = engine.generate(["ab"], processors=[allow_only(40)], max_new_tokens=6, **mode)
        assert found.tokens == [40] * 6
