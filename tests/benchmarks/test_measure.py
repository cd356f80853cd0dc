"""Cells, the clock, and the times that come of them."""

from pathlib import Path

import numpy as np
import pytest

from drl.benchmarks.cells import Cell, random_sources, sweep
from drl.benchmarks.clocked_backend import ClockedBackend
from drl.benchmarks.errors import BenchmarkError
from drl.benchmarks.measure import Settings, measure
from drl.runtime import Engine
from drl.runtime.errors import RequestError
from tests.runtime.toy import VOCAB_SIZE, ToyBackend, toy_bundle


class Listening(ToyBackend):
    """Remembers the tokens of every step."""

    def step(self, inputs):  # type: ignore[no-untyped-def]
        self.read = [*getattr(self, "read", []), inputs.tokens.copy()]
        return super().step(inputs)


def test_a_sweep_is_every_combination(tmp_path: Path) -> None:
    manifest = toy_bundle(tmp_path).manifest
    cells = sweep(manifest, (1, 2), (8,), (4, 6), ("full", "0"), (1, 3))
    assert len(cells) == len(set(cells)) == 16
    assert {cell.path for cell in cells} == {"full", "fast"}
    assert {cell.rows for cell in cells} == {1, 2, 3, 6}
    assert [cell.path for cell in sweep(manifest, (1,), (8,), (4,), (), (1,))] == [
        "fast",
        "mid",
        "full",
    ]


def test_a_sweep_beyond_the_model_is_refused(tmp_path: Path) -> None:
    manifest = toy_bundle(tmp_path).manifest
    with pytest.raises(BenchmarkError, match="--source 41 is beyond the model's 40 tokens"):
        sweep(manifest, (1,), (8, 41), (4,), (), (1,))
    with pytest.raises(BenchmarkError, match="--new 49"):
        sweep(manifest, (1,), (8,), (49,), (), (1,))
    with pytest.raises(BenchmarkError, match="name the paths"):
        sweep(manifest, (1,), (8,), (4,), ("auto",), (1,))
    with pytest.raises(RequestError, match="there is no path 'slow'"):
        sweep(manifest, (1,), (8,), (4,), ("slow",), (1,))


def test_sources_are_the_same_for_every_path_and_search() -> None:
    plain = random_sources(Cell(2, 8, 4, "fast"), 100, seed=1)
    assert np.shape(plain) == (2, 8)
    assert plain == random_sources(Cell(2, 8, 9, "full", 4), 100, seed=1)
    assert plain != random_sources(Cell(2, 8, 4, "fast"), 100, seed=2)


@pytest.mark.parametrize("beams", [1, 3])
def test_every_row_of_every_step_reads_a_random_token(tmp_path: Path, beams: int) -> None:
    bundle = toy_bundle(tmp_path)
    backend = Listening(bundle.manifest)
    clock = ClockedBackend(backend, VOCAB_SIZE, varied=True)
    engine = Engine(bundle, clock, max_batch_size=2 * beams)
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "num_beams": beams}
    results = engine.generate([[5, 6], [7, 8]], engine.configure(**options), path="full")
    tokens = np.concatenate(backend.read)[:, 0]
    assert len(tokens) == 20 * 2 * beams
    assert len(set(tokens.tolist())) > 0.8 * min(len(tokens), VOCAB_SIZE)
    assert all(len(result.tokens) == 20 for result in results)
    assert 0 < clock.forcing < 0.1 * clock.step_seconds


def test_chosen_tokens_are_read_as_they_are_without_variation(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    backend = Listening(bundle.manifest)
    engine = Engine(bundle, ClockedBackend(backend))
    (result,) = engine.generate([[5, 6]], engine.configure(max_new_tokens=6, min_new_tokens=6))
    assert [int(step[0, 0]) for step in backend.read][1:] == result.tokens[:-1]


@pytest.mark.parametrize("new", [1, 5])
def test_times_of_a_cell_add_up(tmp_path: Path, new: int) -> None:
    bundle = toy_bundle(tmp_path)
    cells = sweep(bundle.manifest, (2,), (8,), (new,), ("fast", "full"), (1, 2))
    stages: list[str] = []
    found = measure(bundle, ToyBackend(bundle.manifest), cells, Settings(3), stages.append)
    assert [result.cell for result, _ in found] == cells
    for result, experts in found:
        step = result.step_ms
        assert 0 < step.p50 <= step.p90 <= step.p99
        assert result.encoder_ms + result.bridge_ms < result.first_token_ms <= result.total_ms
        assert 0 <= result.host_ms * (new - 1) < result.total_ms
        assert result.tokens_per_second == pytest.approx(2e3 * new / result.total_ms)
        assert experts is not None
        assert 1 <= experts <= 7
    assert stages == [
        "counting experts in use",
        "warming up",
        *[f"round {i} of 3" for i in (1, 2, 3)],
    ]
