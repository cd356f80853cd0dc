"""A step is cut into pieces that engines take, and put together as if it had not been."""

from typing import Any

import numpy as np
import pytest

from drl.runtime.backends.protocol import Ranking, StepInputs, StepOutputs
from drl.runtime.backends.tensorrt.manifest import EngineInfo, ProfileInfo
from drl.runtime.backends.tensorrt.pieces import Piece, cut, joined


def engine(rows: int = 8, sources: int = 4, tokens: int = 5) -> EngineInfo:
    sizes = {"B": (1, 1, rows), "R": (1, 1, sources), "K": (1, 1, 99)}
    profiles = (
        ProfileInfo("prefill", {}, sizes | {"T": (1, 2, tokens)}),
        ProfileInfo("step", {}, sizes | {"T": (1, 1, 1)}),
    )
    return EngineInfo("decoder.x.engine", 0, "", "", (), (), profiles, 0.0)


def inputs(rows: int, sources: int, new: int, candidates: int = 0) -> StepInputs:
    nothing: Any = np.zeros((sources, 0), np.float32)
    return StepInputs(
        path=0,
        tokens=np.zeros((rows, new), np.int64),
        lengths=np.zeros(rows, np.int32),
        new_lengths=np.full(rows, new, np.int32),
        cross_bias=nothing,
        cross_keys=(),
        cross_values=(),
        past_keys=(),
        past_values=(),
        candidates=candidates,
    )


def test_a_step_that_fits_is_one_piece_padded_to_its_bucket() -> None:
    assert list(cut(inputs(3, 3, 1), engine(), 4)) == [
        Piece(slice(0, 3), slice(0, 3), slice(0, 1), 4)
    ]


@pytest.mark.parametrize(("rows", "sources", "new"), [(9, 9, 1), (6, 3, 7), (8, 8, 12), (2, 1, 5)])
def test_pieces_cover_every_row_and_token_once_and_fit(rows: int, sources: int, new: int) -> None:
    seen = np.zeros((rows, new), int)
    order: dict[int, int] = {}
    for piece in cut(inputs(rows, sources, new), engine(), sources):
        seen[piece.rows, piece.tokens] += 1
        assert piece.padded_rows == piece.rows.stop - piece.rows.start <= 8
        assert piece.padded_sources <= 4
        assert piece.new <= 5
        assert piece.width == rows // sources
        assert order.get(piece.rows.start, 0) == piece.tokens.start  # earlier tokens come first
        order[piece.rows.start] = piece.tokens.stop
    assert (seen == 1).all()


def test_a_step_of_several_tokens_is_never_padded() -> None:
    assert [piece.padded_rows for piece in cut(inputs(3, 3, 2), engine(), 4)] == [3]


@pytest.mark.parametrize("candidates", [0, 2])
def test_outputs_of_pieces_make_the_outputs_of_the_step(candidates: int) -> None:
    step = inputs(6, 6, 7, candidates)
    whole = np.arange(6 * 7 * 3).reshape(6, 7, 3)
    reused = np.empty((4, 5, 3), np.float32)  # logits come in memory that the next piece overwrites

    def run(piece: Piece) -> StepOutputs:
        part = whole[piece.rows, piece.tokens]
        rows, new = part.shape[:2]
        logits = reused[:rows, :new] if not candidates else np.empty((rows, new, 0), np.float32)
        if not candidates:
            logits[...] = part
        top = Ranking(part[..., :2].astype(np.float32), part[..., 1:].astype(np.int32))
        experts = {3: part[..., :1].astype(np.int32)}
        normalisers = part[..., 2].astype(np.float32)
        return StepOutputs(logits, normalisers, experts, top if candidates else None)

    found = joined(step, ((piece, run(piece)) for piece in cut(step, engine(), 6)))
    np.testing.assert_array_equal(found.normalisers, whole[..., 2])
    np.testing.assert_array_equal(found.experts[3], whole[..., :1])
    if candidates:
        assert found.top is not None
        np.testing.assert_array_equal(found.top.values, whole[..., :2])
        np.testing.assert_array_equal(found.top.ids, whole[..., 1:])
        assert found.logits.shape == (6, 7, 0)
    else:
        np.testing.assert_array_equal(found.logits, whole)
        assert found.top is None
