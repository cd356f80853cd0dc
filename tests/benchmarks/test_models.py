"""Random checkpoints of named shapes."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from drl.benchmarks import models
from drl.benchmarks.models import SHAPES, Shape, draw_own, main, write_model
from drl.export import ExportOptions, export, load_checkpoint
from drl.runtime import Engine
from tests.models import TINY

SMALL = {"d_model": 48, "d_ff": 64, "d_kv": 12, "num_layers": 2, "num_heads": 4}


def _write_t5(folder: Path, vocab_size: int) -> None:
    models._t5(folder, vocab_size, **SMALL)


def _write_switch(folder: Path, vocab_size: int) -> None:
    sparse = {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    models._switch(folder, vocab_size, **SMALL, num_decoder_layers=2, num_experts=4, **sparse)


@pytest.mark.parametrize("write", [_write_t5, _write_switch, models._own(TINY)])
def test_generations_vary_and_nothing_overflows(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("transformers")
    vocab_size = 150
    write(tmp_path / "checkpoint", vocab_size)
    models.write_tokenizer(tmp_path / "checkpoint", vocab_size)
    export(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(verify=False))
    engine = Engine.from_bundle(tmp_path / "bundle", threads=1)
    prompts = [f"w{n} w{n + 9} w{3 * n}" for n in range(5, 13)]
    results = engine.generate(prompts, max_new_tokens=24, min_new_tokens=24)
    assert len({tuple(result.tokens) for result in results}) > 4
    assert sum(len(set(result.tokens)) for result in results) > 4 * len(results)
    logprobs = [value for result in results for value in result.logprobs or ()]
    assert all(-50 < value <= 0 for value in logprobs)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["drl-small", str(tmp_path)])
    assert done.exit_code == 1
    assert "is not empty" in done.stderr


def test_a_shape_is_written_with_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "drl-small", Shape("tiny", models._own(TINY), TINY.vocab_size))
    write_model("drl-small", tmp_path / "made")
    checkpoint = load_checkpoint(tmp_path / "made")
    assert checkpoint.config == TINY
    assert checkpoint.tokenizer is not None


@pytest.mark.parametrize("config", [models.DRL_SMALL, models.DRL_BASE])
def test_own_shapes_are_what_they_are_called(config) -> None:  # type: ignore[no-untyped-def]
    assert len(config.paths) == 3
    assert (config.groups, config.experts_per_group) == (4, 2)


def test_the_same_seed_draws_the_same_weights() -> None:
    first, second, other = (draw_own(TINY, seed).embedding.weight for seed in (0, 0, 1))
    assert first.equal(second)
    assert not first.equal(other)
