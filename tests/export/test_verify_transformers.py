"""`--verify-against transformers`, on a folder that transformers wrote itself."""

from pathlib import Path

import pytest
import torch

from drl.export import ExportOptions, export, load_checkpoint
from drl.export.verify_transformers import verify_against_transformers
from drl.runtime.errors import ExportError

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=80,
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    path = tmp_path_factory.mktemp("t5") / "folder"
    transformers.T5ForConditionalGeneration(config).save_pretrained(path)
    return path


def test_an_import_is_held_against_transformers(folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(verify_against_transformers=True)
    report = export(folder, tmp_path / "bundle", options)
    assert report.transformers is not None
    assert report.transformers.passed
    assert report.transformers.version == transformers.__version__
    assert report.parity is not None
    assert report.parity.passed


def test_a_wrong_import_fails(folder: Path) -> None:
    model = load_checkpoint(folder).model()
    model.decoder.layers[1].ffn_norm.weight.data *= 1.01
    assert not verify_against_transformers(folder, model).passed


def test_a_folder_that_transformers_cannot_load_is_one_line(folder: Path, tmp_path: Path) -> None:
    model = load_checkpoint(folder).model()
    with pytest.raises(ExportError) as caught:
        verify_against_transformers(tmp_path, model)
    assert "\n" not in str(caught.value)
