"""Kernels that were compiled here are there for the next process."""

from pathlib import Path

import pytest

from drl.runtime.backends.tensorrt.runtime_cache import cache_folder
from tests.runtime.backends.tensorrt.fake_engines import open_fake
from tests.runtime.backends.tensorrt.fake_tensorrt import RuntimeCache, RuntimeConfig


def run(engines: Path) -> set[bytes]:
    """Generate, close, and tell what the contexts' cache held."""
    opened = open_fake(engines, flavour="tensorrt-rtx")
    with opened.engine() as engine:
        engine.generate([[5, 6, 7]], path="fast", max_new_tokens=3)
        caches = {context.config.cache for context in opened.library.contexts}
        assert len(caches) == 1
        return {cache.content for cache in caches if cache is not None}


def test_the_next_process_begins_with_what_this_one_compiled(
    rtx_engines: Path, cache_home: Path
) -> None:
    assert run(rtx_engines) == {b"kernels of encoder"}
    (file,) = (cache_home / "drl" / "tensorrt").iterdir()
    assert file.name.startswith("rtx-11.0.0.1-sm89-")
    assert file.read_bytes() == b"kernels of encoder"
    file.write_bytes(b"kernels of an earlier process")
    assert run(rtx_engines) == {b"kernels of an earlier process"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_does_not_fit_is_compiled_and_kept_anew(rtx_engines: Path, cache_home: Path) -> None:
    run(rtx_engines)
    (file,) = (cache_home / "drl" / "tensorrt").iterdir()
    file.write_bytes(b"of another driver")
    assert run(rtx_engines) == {b"kernels of encoder"}
    assert file.read_bytes() == b"kernels of encoder"


def test_a_folder_that_cannot_be_written_is_told_and_no_failure(
    rtx_engines: Path, cache_home: Path
) -> None:
    cache_home.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match=r"cannot be kept .*; set XDG_CACHE_HOME to a folder"):
        run(rtx_engines)


def test_a_flavour_that_compiles_when_building_keeps_nothing(
    tiny_engines: Path, cache_home: Path
) -> None:
    with open_fake(tiny_engines).engine() as engine:
        engine.generate([[5, 6, 7]], path="fast", max_new_tokens=3)
    assert not cache_home.exists()


def test_what_cannot_be_read_is_told_and_compiled_anew(rtx_engines: Path, cache_home: Path) -> None:
    run(rtx_engines)
    (file,) = (cache_home / "drl" / "tensorrt").iterdir()
    file.unlink()
    file.mkdir()
    with pytest.warns(RuntimeWarning) as told:
        assert run(rtx_engines) == {b"kernels of encoder"}
    assert "cannot be read from" in str(told[0].message)


def test_a_library_that_gives_no_kernels_back_is_told_and_no_failure(
    rtx_engines: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RuntimeCache, "serialize", lambda self: None)
    with pytest.warns(RuntimeWarning, match="does not give its compiled kernels back"):
        run(rtx_engines)
    assert not cache_home.exists()


def test_a_library_that_makes_no_cache_is_told_once_and_no_failure(
    rtx_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RuntimeConfig, "create_runtime_cache", lambda self: None)
    opened = open_fake(rtx_engines, flavour="tensorrt-rtx")
    with pytest.warns(RuntimeWarning, match="makes no cache") as told, opened.engine() as engine:
        engine.generate([[5, 6, 7]], path="fast", max_new_tokens=3)
    assert len(told) == 1


def test_kernels_are_kept_in_the_device_s_order(
    rtx_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_fake(rtx_engines, flavour="tensorrt-rtx")
    depths: list[int] = []
    serialize = RuntimeCache.serialize

    def look(cache: RuntimeCache) -> bytes:
        depths.append(opened.device.depth)
        return serialize(cache)

    monkeypatch.setattr(RuntimeCache, "serialize", look)
    with opened.engine() as engine:
        engine.generate([[5, 6, 7]], path="fast", max_new_tokens=3)
    assert depths == [1]


def test_it_lies_in_the_users_cache(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache_home / "drl" / "tensorrt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "drl" / "tensorrt"
