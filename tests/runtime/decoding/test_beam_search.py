"""Beam search against an exhaustive search, and where its beams lie."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.runtime import GenerationConfig
from drl.runtime.decoding.beam_search import UNUSED, Beams, BeamSearch, Candidate, Node
from drl.runtime.results import FinishReason

END, VOCAB = 0, 4
ENDS: dict[int, FinishReason] = {END: "eos"}
Tokens = tuple[int, ...]


def log_probabilities(tokens: Tokens, seed: int) -> list[float]:
    """What a model might say of the next token."""
    scores = np.random.default_rng([seed, *tokens]).normal(size=VOCAB) * 2
    return (scores - np.logaddexp.reduce(scores)).tolist()


def hypotheses(seed: int, limit: int, tokens: Tokens = ()) -> Iterator[tuple[float, Tokens]]:
    """Every text that ends, or is as long as it may be, with its log-probability."""
    for token, value in enumerate(log_probabilities(tokens, seed)):
        text = (*tokens, token)
        if token == END or len(text) == limit:
            yield value, text
        else:
            yield from ((value + rest, longer) for rest, longer in hypotheses(seed, limit, text))


def tokens_of(node: Node) -> Tokens:
    return tuple(each.token for each in node.chain())


class Search:
    """A beam search over the model, whose rows are followed by their moves alone."""

    def __init__(self, width: int, limit: int, seed: int, **options: Any) -> None:
        config = GenerationConfig(num_beams=width, **options)
        self.search = BeamSearch(config, width, ENDS, limit)
        self.rows: list[Tokens] = [()] * width
        self.seed = seed

    def candidates(self) -> list[Candidate]:
        found = [
            Candidate(score + value, row, token)
            for row, score in enumerate(self.search.scores)
            for token, value in enumerate(log_probabilities(self.rows[row], self.seed))
        ]
        found.sort(key=lambda candidate: -candidate.score)
        return found[: self.search.candidates_needed]

    def step(self, candidates: list[Candidate]) -> list[tuple[int, int, int]]:
        moves = self.search.advance(
            candidates, lambda candidate, parent: Node(parent, candidate.token)
        )
        before = list(self.rows)
        for row, source, token in moves:
            self.rows[row] = (*before[source], token)
        return moves

    def run(self) -> "Search":
        while not self.search.done:
            self.step(self.candidates())
        return self


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_a_beam_wide_enough_finds_the_best(limit: int, length_penalty: float) -> None:
    width = VOCAB * (VOCAB - 1) ** (limit - 1)  # all continuations of all texts
    for seed in range(8):
        options = {"length_penalty": length_penalty, "early_stopping": "never"}
        found = Search(max(width, 2), limit, seed, **options).run().search.finished
        expected = sorted(
            (
                (value / len(text) ** length_penalty, text)
                for value, text in hypotheses(seed, limit)
            ),
            reverse=True,
        )
        assert len(found) == min(len(expected), max(width, 2))
        for hypothesis, (score, text) in zip(found, expected, strict=False):
            assert hypothesis.score == pytest.approx(score)
            assert tokens_of(hypothesis.node) == text
            assert hypothesis.reason == ("eos" if text[-1] == END else "length")


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 5), st.integers(1, 7), st.integers(0, 10**6), st.floats(0.0, 2.0))
def test_never_stops_too_early(width: int, limit: int, seed: int, penalty: float) -> None:
    options = {"length_penalty": penalty, "early_stopping": "never"}
    stopping = Search(width, limit, seed, **options).run()
    going_on = Search(width, limit, seed, **options)
    going_on.search._settled = lambda best: False  # type: ignore[method-assign]
    going_on.run()
    assert stopping.search._steps <= going_on.search._steps <= limit
    best = [search.search.finished[0] for search in (stopping, going_on)]
    assert best[0].score == pytest.approx(best[1].score)


def test_only_an_end_among_the_best_candidates_completes_a_hypothesis() -> None:
    """As in transformers: of the candidates, those that come after the first W only go on."""
    for rank in range(4):
        search = Search(2, 5, 0).search
        candidates = [Candidate(-1.0 - place, 0, END if place == rank else 2) for place in range(4)]
        search.advance(candidates, lambda candidate, parent: Node(parent, candidate.token))
        assert len(search.finished) == (rank < 2)


def test_early_stopping_takes_the_first_hypotheses() -> None:
    for seed in range(20):
        steps = {
            choice: Search(3, 12, seed, early_stopping=choice).run().search._steps
            for choice in (True, False, "never")
        }
        assert steps[True] <= steps[False] <= steps["never"]


candidate_lists = st.lists(
    st.tuples(st.floats(-9, 0), st.integers(0, 20), st.integers(0, VOCAB - 1)), max_size=12
)


@settings(deadline=None, max_examples=150)
@given(st.integers(2, 6), st.lists(candidate_lists, min_size=1, max_size=6), st.booleans())
def test_beams_lie_where_their_parents_were(
    width: int, steps: list[list[tuple[float, int, int]]], drawn: bool
) -> None:
    search = Search(width, 50, 0, early_stopping="never")
    search.search._settled = lambda best: False  # type: ignore[method-assign]
    for number, raw in enumerate(steps):
        if search.search.done:
            break
        live = [row for row, score in enumerate(search.search.scores) if score > UNUSED / 2]
        chosen = {(row % width if number else 0, token): score for score, row, token in raw}
        candidates = [
            Candidate(score + search.search.scores[row], row, token)
            for (row, token), score in chosen.items()
        ]
        if not drawn:
            candidates.sort(key=lambda candidate: -candidate.score)
        parents = list(search.rows)
        moves = search.step(candidates)
        usable = [item for item in candidates if item.row in live and item.token != END]
        usable.sort(key=lambda candidate: -candidate.score)
        expected = [(*parents[item.row], item.token) for item in usable[:width]]
        assert search.search.done == (not expected)
        if search.search.done:
            break
        assert sorted(row for row, _, _ in moves) == list(range(width))
        sources = {source for _, source, _ in moves}
        targets = {row for row, source, _ in moves if row != source}
        assert not sources & targets  # so copies may be made in any order
        assert {source for row, source, _ in moves if row == source} == sources
        now = [
            (score, tokens)
            for score, tokens in zip(search.search.scores, search.rows, strict=True)
            if score > UNUSED / 2
        ]
        assert sorted(tokens for _, tokens in now) == sorted(expected)
        for row, node in enumerate(search.search._nodes):
            assert tokens_of(node) == search.rows[row]
        for row, score in enumerate(search.search.scores):
            if score <= UNUSED / 2:
                assert search.rows[row] == expected[0]  # the best once more, taking no part


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(0, 10**6), st.integers(1, 6))
def test_unused_beams_never_appear_in_results(width: int, seed: int, stop: int) -> None:
    """Barred vocabularies leave fewer continuations than beams."""
    search = Search(width, 8, seed, early_stopping="never")
    random = np.random.default_rng(seed)
    for _ in range(stop):
        if search.search.done:
            break
        allowed = random.random(VOCAB) < 0.4
        search.step([each for each in search.candidates() if allowed[each.token]])
    search.search.cut("time")
    for hypothesis in search.search.finished:
        assert hypothesis.score > UNUSED / 100
        assert tokens_of(hypothesis.node)
    texts = [tokens_of(hypothesis.node) for hypothesis in search.search.finished]
    assert len(texts) == len(set(texts))
    assert len(texts) <= width


def test_a_search_that_is_cut_ranks_live_beams_with_complete_ones() -> None:
    for seed in range(30):
        search = Search(3, 20, seed, early_stopping="never", length_penalty=1.0)
        for _ in range(3):
            search.step(search.candidates())
        live = list(zip(search.search.scores, search.rows, strict=True))
        complete = [(item.score, tokens_of(item.node)) for item in search.search.finished]
        search.search.cut("cancelled")
        expected = sorted([*complete, *((score / 3, tokens) for score, tokens in live)])[::-1][:3]
        found = [(item.score, tokens_of(item.node)) for item in search.search.finished]
        assert found == expected
        search.search.cut("time")
        assert {item.reason for item in search.search.finished} <= {"eos", "cancelled"}


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 4), st.integers(0, 10**6), st.sampled_from([False, True, "never"]))
def test_what_is_settled_begins_every_result(width: int, seed: int, early: Any) -> None:
    config = GenerationConfig(num_beams=width, early_stopping=early)
    beams = Beams(config, ENDS, 10)
    search = Search(width, 10, seed)
    search.search = beams.searches[0]
    settled: list[int] = []
    while not beams.done:
        search.step(search.candidates())
        settled += [node.token for node in beams.newly_settled()]
    (best,) = beams.best(1)
    assert list(tokens_of(best.node)[: len(settled)]) == settled


def test_groups_search_apart_and_compete_at_the_end() -> None:
    config = GenerationConfig(num_beams=4, num_beam_groups=2, diversity_penalty=0.5)
    beams = Beams(config, ENDS, 5)
    searches = []
    for number, each in enumerate(beams.searches):
        assert each.width == 2
        search = Search(2, 5, seed=number)
        search.search = each
        searches.append(search.run())
        assert beams.done == (number == 1)
        assert beams.newly_settled() == []
    scores = [item.score for search in searches for item in search.search.finished]
    assert [item.score for item in beams.best(3)] == sorted(scores)[::-1][:3]


def test_the_model_of_these_tests_is_a_distribution() -> None:
    for tokens in itertools.product(range(VOCAB), repeat=2):
        total = math.fsum(map(math.exp, log_probabilities(tokens, 3)))
        assert total == pytest.approx(1.0)
    assert math.fsum(math.exp(value) for value, _ in hypotheses(1, 4)) == pytest.approx(1.0)
