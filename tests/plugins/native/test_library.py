"""Where the library lies, and what is said where it is missing or wrong."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drl.plugins.native import Kernels, NativeLibraryError, find_library
from drl.plugins.native.library import ABI_VERSION, LIBRARY, NO_LIBRARY, load
from tests.documents import ROOT
from tests.plugins.native.sets import INSTRUCTION_SETS, available, needs_library

HEADER = ROOT / "plugins" / "native" / "src" / "drl_native.h"


needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="not tested: no C++ compiler here"
)


@needs_compiler
def test_the_library_is_built_with_its_operators_where_there_is_a_compiler() -> None:
    found = find_library()
    assert (found.path, found.missing) == (LIBRARY, "")
    assert hasattr(load(), "RegisterCustomOps")


def test_a_missing_library_is_reported_with_the_remedy(tmp_path: Path) -> None:
    missing = find_library(tmp_path / "none.so")
    assert (missing.path, missing.missing) == (None, NO_LIBRARY)
    with pytest.raises(NativeLibraryError, match="install one"):
        Kernels(path=tmp_path / "none.so")


def test_a_file_that_is_no_library_is_reported(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    with pytest.raises(NativeLibraryError, match=r"does not load .*; install DRL again on this"):
        find_library(tmp_path / "broken.so")


def build(folder: Path, code: str) -> Path:
    """A library of this code, under a name of its own: a process loads a name once."""
    source, library = folder / "other.cpp", folder / "other.so"
    source.write_text(code)
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@needs_compiler
def test_the_library_of_another_version_is_reported(tmp_path: Path) -> None:
    """Such as one that an earlier build left behind."""
    library = build(tmp_path, 'extern "C" unsigned drl_abi_version() { return 1; }')
    sentence = f"its interface is 1 and this one needs {ABI_VERSION}; install DRL again"
    with pytest.raises(NativeLibraryError, match=sentence):
        find_library(library)


@needs_compiler
def test_another_library_is_reported(tmp_path: Path) -> None:
    library = build(tmp_path, 'extern "C" unsigned something_else() { return 1; }')
    with pytest.raises(NativeLibraryError, match="is not DRL's native library"):
        find_library(library)


@needs_compiler
def test_a_library_that_lacks_something_of_the_system_is_reported(tmp_path: Path) -> None:
    code = """
extern "C" unsigned not_in_any_library();
extern "C" unsigned drl_abi_version() { return not_in_any_library(); }
"""
    with pytest.raises(NativeLibraryError, match=r"does not load .*not_in_any_library"):
        find_library(build(tmp_path, code))


def test_python_and_the_header_agree_on_the_version() -> None:
    assert f"#define DRL_NATIVE_ABI_VERSION {ABI_VERSION}\n" in HEADER.read_text(encoding="utf-8")


@needs_library
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_environment_chooses_the_instruction_set(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRL_NATIVE_ISA", isa)
    if available(isa) is None:
        with pytest.raises(NativeLibraryError, match="processor lacks"):
            Kernels()
    else:
        assert Kernels().isa == isa


@needs_library
def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRL_NATIVE_ISA", "avx9")
    with pytest.raises(NativeLibraryError, match="must be avx512vnni, avx2 or scalar"):
        Kernels()


def test_importing_it_needs_numpy_alone() -> None:
    code = """
import sys
import drl.plugins.native
heavy = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
