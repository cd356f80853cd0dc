"""The diagnosis of a machine."""

import re
import sys
from types import SimpleNamespace

import onnx
import pytest

from drl.plugins.native import NativeLibrary, NativeLibraryError
from drl.runtime import diagnosis
from drl.runtime.diagnosis import BackendCheck, diagnose, tiny_model
from drl.runtime.gpu import Gpu, GpuReport
from tests.plugins.native.sets import needs_library


def test_the_tiny_model_is_valid_onnx() -> None:
    model = onnx.load_from_string(tiny_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Neg"]


def test_this_machine_can_generate() -> None:
    found = diagnose()
    assert found.usable
    cpu = found.backends[0]
    assert cpu.works
    assert "ran a graph" in cpu.detail
    assert {library.name: library.version for library in found.libraries}["numpy"]
    assert found.processor.default_threads >= 1


def test_the_native_library_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = NativeLibrary(None, "DRL's native kernels were not built; install DRL again")
    monkeypatch.setattr(diagnosis, "find_library", lambda: missing)
    found = diagnose()
    assert found.usable
    assert not found.native.works
    assert found.native.detail == "DRL's native kernels were not built"
    assert found.native.remedy == "install DRL again"

    def refuse() -> NativeLibrary:
        raise NativeLibraryError("lib.so was built by another version of DRL; install DRL again")

    monkeypatch.setattr(diagnosis, "find_library", refuse)
    assert "another version" in diagnose().native.detail


@needs_library
def test_the_instruction_set_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRL_NATIVE_ISA", "scalar")
    native = diagnose().native
    assert native.works
    assert native.detail.startswith("scalar instructions, ")
    monkeypatch.setenv("DRL_NATIVE_ISA", "abacus")
    assert not diagnose().native.works


def test_without_onnxruntime_nothing_works_and_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = diagnose()
    assert not found.usable
    assert 'pip install "drl[cpu]"' in found.backends[0].remedy


def test_a_runtime_that_computes_wrongly_or_fails_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    class Wrong:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

        def run(self, *_: object) -> list[object]:
            return [SimpleNamespace(tolist=lambda: [1.0, 2.0])]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    assert "computes -(1, -2) as [1.0, 2.0]" in diagnose().backends[0].detail

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("illegal\ninstruction")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    assert "illegal instruction" in diagnose().backends[0].detail


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_cuda_build_without_a_driver_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    cuda = diagnose().backends[1]
    assert not cuda.works
    assert "CUDAExecutionProvider did not start" in cuda.detail


def check_of(name: str) -> BackendCheck:
    return next(check for check in diagnose().backends if check.name == name)


def test_tensorrt_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = check_of("TensorRT")
    assert not found.works
    assert found.detail == "TensorRT is not installed"
    assert "drl[tensorrt]" in found.remedy


def test_tensorrt_for_rtx_builds_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        diagnosis, "find_gpus", lambda: GpuReport(None, (), "there is no NVIDIA driver")
    )
    found = check_of("TensorRT for RTX")
    assert not found.works
    assert re.fullmatch(r"[\d.]+ loads, but there is no NVIDIA driver", found.detail)
    assert "drl-build --flavour rtx" in found.remedy


@pytest.mark.parametrize(("capability", "works"), [("8.9", True), ("9.0", False)])
def test_tensorrt_for_rtx_works_on_gpus_that_it_builds_for(
    monkeypatch: pytest.MonkeyPatch, capability: str, works: bool
) -> None:
    gpus = GpuReport("13.0", (Gpu("NVIDIA L4", capability, 1 << 34),))
    monkeypatch.setattr(diagnosis, "find_gpus", lambda: gpus)
    monkeypatch.setattr(diagnosis, "import_cupy", lambda: None)
    found = check_of("TensorRT for RTX")
    assert found.works == works
    assert f"NVIDIA L4 of compute capability {capability}" in found.detail


def test_tensorrt_needs_cupy_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = GpuReport("13.0", (Gpu("NVIDIA L4", "8.9", 1 << 34),))
    monkeypatch.setattr(diagnosis, "find_gpus", lambda: gpus)
    monkeypatch.setitem(sys.modules, "cupy", None)
    found = check_of("TensorRT for RTX")
    assert not found.works
    assert "CuPy" in found.detail
