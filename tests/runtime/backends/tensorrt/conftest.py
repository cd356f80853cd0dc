"""Bundles with engines of the fake TensorRT, built once per run."""

from pathlib import Path

import pytest

from drl.export.tensorrt.sizes import Range, Sizes
from tests.runtime.backends.tensorrt.fake_engines import build_fake


@pytest.fixture(scope="session")
def tiny_engines(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the model with every feature, which tell 8 of its 60 logits."""
    return build_fake(tiny_bundle, tmp_path_factory.mktemp("engines") / "tiny", candidates=8)


@pytest.fixture(scope="session")
def small_engines(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for at most 4 rows of 2 sources, 3 new tokens at a time, and shorter texts."""
    sizes = Sizes(
        batch=Range(1, 2, 4),
        sources=Range(1, 2, 2),
        source=Range(1, 8, 20),
        new_tokens=Range(1, 2, 3),
        capacity=16,
    )
    folder = tmp_path_factory.mktemp("engines") / "small"
    return build_fake(tiny_bundle, folder, candidates=8, sizes=sizes)


@pytest.fixture(scope="session")
def rtx_engines(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_engines`, of TensorRT for RTX."""
    folder = tmp_path_factory.mktemp("engines") / "rtx"
    return build_fake(tiny_bundle, folder, "tensorrt-rtx", candidates=8)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, for every test its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
