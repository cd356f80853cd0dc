"""Bundles to build engines in."""

import shutil
from pathlib import Path

import pytest

from drl.export import ExportOptions, export
from drl.export.tensorrt import wanted
from drl.runtime.bundle import Bundle
from tests.export.tensorrt.small_graphs import lower_small


@pytest.fixture(scope="session")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with three paths."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export(tiny_checkpoint, folder, ExportOptions(verify=False))
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Bundle:
    """The same, a test's own."""
    return Bundle.load(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def small_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower every bundle to graphs of a few nodes."""
    monkeypatch.setattr(wanted, "lower_bundle", lower_small)
