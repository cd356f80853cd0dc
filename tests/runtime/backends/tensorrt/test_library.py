"""Which TensorRT is here, and what it can do."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from drl.runtime.backends.tensorrt import library
from drl.runtime.errors import BackendError


def module(version: str) -> ModuleType:
    made = ModuleType("tensorrt")
    made.__version__ = version  # type: ignore[attr-defined]
    return made


def test_a_flavour_has_a_short_name() -> None:
    assert library.flavour_of("rtx") == library.flavour_of("tensorrt-rtx") == "tensorrt-rtx"
    assert library.flavour_of("tensorrt") == "tensorrt"
    with pytest.raises(BackendError, match="no TensorRT flavour 'trt'; there are tensorrt and rtx"):
        library.flavour_of("trt")


def test_tensorrt_for_rtx_is_here_and_names_its_gpus() -> None:
    found = library.import_library("tensorrt-rtx")
    assert library.release(library.version(found)) >= (1, 2)
    targets = library.targets(found)
    assert {"8.0", "8.9", "12.0"} <= set(targets)
    assert "9.0" not in targets
    assert list(targets) == sorted(targets, key=library.release)


@pytest.mark.parametrize(
    ("flavour", "name", "install"),
    [("tensorrt", "tensorrt", "drl[tensorrt]"), ("tensorrt-rtx", "tensorrt_rtx", "drl[rtx]")],
)
def test_a_missing_library_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, flavour: library.Flavour, name: str, install: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError) as caught:
        library.import_library(flavour)
    assert "is not installed; " in str(caught.value)
    assert install in str(caught.value)


def test_a_library_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libnvinfer.so.10: cannot open\nshared object file")

    monkeypatch.setattr(library, "import_module", fail)
    with pytest.raises(BackendError) as caught:
        library.import_library("tensorrt")
    assert "does not load (libnvinfer.so.10: cannot open shared object file)" in str(caught.value)


def test_a_part_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs")

    monkeypatch.setattr(library, "import_module", fail)
    with pytest.raises(BackendError, match="not installed as a whole: No module named 'tensorrt_l"):
        library.import_library("tensorrt")


@pytest.mark.parametrize(
    ("version", "taken"), [("11.0.0.1", True), ("12.0", True), ("10.16.1", False)]
)
def test_an_old_library_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", module(version))
    if taken:
        assert library.version(library.import_library("tensorrt")) == version
    else:
        with pytest.raises(BackendError, match=r"10\.16\.1 is too old, drl needs 11\.0"):
            library.import_library("tensorrt")


def test_installed_flavours_are_those_that_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module("1.7.1.116"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert library.installed_flavours() == {"tensorrt-rtx": "1.7.1.116"}
    monkeypatch.setitem(sys.modules, "tensorrt", module("11.0.0"))
    assert library.installed_flavours() == {"tensorrt": "11.0.0", "tensorrt-rtx": "1.7.1.116"}


def test_tensorrt_comes_before_rtx_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tensorrt", "tensorrt_rtx"}
    monkeypatch.setattr(library, "find_spec", lambda name: name if name in installed else None)
    assert library.default_flavour() == "tensorrt"
    installed.remove("tensorrt")
    assert library.default_flavour() == "tensorrt-rtx"
    installed.clear()
    assert library.default_flavour() == "tensorrt"


def test_targets_are_read_from_the_library() -> None:
    names = ["NONE", "CURRENT", "SM75", "SM120", "SM89"]
    fake = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=dict.fromkeys(names)))
    assert library.targets(fake) == ("7.5", "8.9", "12.0")
    assert library.sm("12.0") == "120"


def test_versions_are_compared_as_numbers() -> None:
    assert library.release("10.9.0") < library.release("10.13.0.35")
    assert library.release("10.13.0.35.post1") == (10, 13, 0, 35, 1)
