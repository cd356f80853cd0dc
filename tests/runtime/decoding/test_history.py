"""The token history against plain lists."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.runtime.decoding import TokenHistory

tokens = st.integers(0, 99)
actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"),
            st.lists(st.lists(tokens, min_size=1, max_size=70), min_size=1, max_size=4),
        ),
        st.tuples(st.just("push"), st.integers(1, 40)),
        st.tuples(st.just("copy"), st.tuples(st.integers(0, 20), st.integers(0, 20))),
        st.tuples(st.just("truncate"), st.integers(0, 5)),
        st.tuples(st.just("clear"), st.none()),
    ),
    max_size=14,
)


def assert_holds(history: TokenHistory, rows: list[list[int]]) -> None:
    assert history.rows == len(rows)
    longest = max((len(row) for row in rows), default=0)
    assert history.tokens.shape == (len(rows), longest)
    assert history.tokens.dtype == history.lengths.dtype == np.int64
    assert history.lengths[: len(rows)].tolist() == [len(row) for row in rows]
    padded = [row + [-1] * (longest - len(row)) for row in rows]
    assert history.tokens.tolist() == padded


def change(history: TokenHistory, rows: list[list[int]], action: str, argument: Any) -> None:
    if action == "append":
        history.append(argument)
        rows += [list(row) for row in argument]
    elif action == "push" and rows:
        for turn in range(argument):
            new = [(turn * 7 + row) % 99 for row in range(len(rows))]
            history.push(np.array(new, np.int64))
            for row, token in zip(rows, new, strict=True):
                row.append(token)
    elif action == "copy" and rows:
        source, target = (number % len(rows) for number in argument)
        history.copy(source, target)
        rows[target] = list(rows[source])
    elif action == "truncate":
        kept = min(argument, len(rows))
        history.truncate(kept)
        del rows[kept:]
    elif action == "clear":
        history.clear()
        rows.clear()


@settings(deadline=None)
@given(actions)
def test_a_history_is_a_list_of_lists(actions: list[tuple[str, Any]]) -> None:
    history, rows = TokenHistory(), list[list[int]]()
    assert_holds(history, rows)
    for action, argument in actions:
        change(history, rows, action, argument)
        assert_holds(history, rows)


def test_a_row_s_past_does_not_show_behind_the_next_one() -> None:
    history, rows = TokenHistory(), list[list[int]]()
    for action, argument in (
        ("append", [[1], [2]]),
        ("push", 9),
        ("truncate", 1),
        ("append", [[3]]),
        ("push", 2),
    ):
        change(history, rows, action, argument)
        assert_holds(history, rows)


def test_growing_costs_no_copy_per_token() -> None:
    history = TokenHistory()
    history.append([[1]] * 8)
    buffers = {id(history._tokens)}
    kept = [history._tokens]
    for _ in range(1000):
        history.push(np.zeros(8, np.int64))
        if id(history._tokens) not in buffers:
            buffers.add(id(history._tokens))
            kept.append(history._tokens)  # so that no address is used again
    assert len(buffers) <= 7


def test_memory_is_given_back() -> None:
    history = TokenHistory()
    history.append([[1, 2, 3]] * 50)
    history.clear()
    assert history._tokens.nbytes == history.lengths.nbytes == 0
