"""The timing cache: where it lies, and that nothing is lost or half-written."""

from pathlib import Path

import pytest

from drl.export.tensorrt.engine_process import EngineProcesses
from drl.export.tensorrt.timing_cache import cache_file, load, save
from tests.export.tensorrt import rtx_as_tensorrt
from tests.export.tensorrt.small_graphs import deep, linear
from tests.export.tensorrt.test_engine_process import make_job, stop_when_told


class Cache:
    """Timings by kernel, as `name=milliseconds` lines."""

    def __init__(self, content: bytes) -> None:
        self.timings = dict(line.split("=") for line in content.decode().split())

    def combine(self, other: "Cache", ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timings = other.timings | self.timings
        return True

    def serialize(self) -> bytes:
        return "\n".join(f"{name}={time}" for name, time in self.timings.items()).encode()


class Config:
    """The part of a builder configuration that knows timings."""

    def __init__(self) -> None:
        self.cache: Cache | None = None

    def create_timing_cache(self, content: bytes) -> Cache | None:
        return None if content.startswith(b"damaged") else Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if "other-gpu" in cache.timings:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache

    def measure(self, **timings: str) -> None:
        assert self.cache is not None
        self.cache.timings |= timings


def test_the_first_build_begins_without_timings_and_keeps_what_it_measures(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache"
    config = Config()
    assert load(config, path) == ""
    config.measure(gemm="1")
    assert save(config, path) == ""
    assert path.read_bytes() == b"gemm=1"


def test_the_next_build_begins_with_them(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"gemm=1")
    config = Config()
    load(config, path)
    assert config.cache is not None
    assert config.cache.timings == {"gemm": "1"}


def test_what_another_build_kept_in_the_meantime_stays(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    config = Config()
    load(config, path)
    path.write_bytes(b"conv=2")
    config.measure(gemm="1")
    save(config, path)
    assert Cache(path.read_bytes()).timings == {"gemm": "1", "conv": "2"}


@pytest.mark.parametrize("content", [b"damaged", b"other-gpu=1"])
def test_a_file_that_does_not_fit_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache"
    path.write_bytes(content)
    config = Config()
    assert "made anew" in load(config, path)
    assert config.cache is not None
    assert config.cache.timings == {}


def test_a_folder_that_cannot_be_written_costs_the_timings_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = Config()
    path = tmp_path / "file" / "cache"
    assert "cannot be read" in load(config, path)
    assert "cannot be written" in save(config, path)


def test_a_write_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"gemm=1")
    config = Config()
    load(config, path)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    assert "No space left on device" in save(config, path)
    assert path.read_bytes() == b"gemm=1"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache", "cache.lock"]


def test_it_belongs_to_a_flavour_a_version_and_a_gpu(tmp_path: Path) -> None:
    names = {
        cache_file(tmp_path, "tensorrt", version, target).name
        for version in ("11.0.0.9", "11.1.0.1")
        for target in ("8.9", "9.0")
    }
    assert len(names) == 4
    assert "tensorrt-11.0.0.9-sm89.timing" in names


def test_a_build_process_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(rtx_as_tensorrt.install(tmp_path)))
    path = tmp_path / "cache" / "timings"
    job = make_job(tmp_path, linear(), flavour="tensorrt", timing_cache=path)
    EngineProcesses().build(job, lambda event: None)
    kept = path.read_bytes()
    assert kept
    events: list[dict[str, object]] = []
    EngineProcesses().build(job, events.append)
    assert not [event for event in events if event["event"] == "warning"]
    assert job.engine.stat().st_size > 1000


def test_a_build_that_is_stopped_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(rtx_as_tensorrt.install(tmp_path)))
    path = tmp_path / "timings"
    job = make_job(tmp_path, deep(60), flavour="tensorrt", timing_cache=path)
    stop_when_told(EngineProcesses(grace=60), job)
    assert path.exists()
    assert not job.engine.exists()
