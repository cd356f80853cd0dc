"""device="cuda": what is missing is named, and on a GPU it generates what the CPU generates."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from drl.runtime import BackendError, Bundle, BundleError, Engine
from drl.runtime.backends import open_backend, ort_cuda
from drl.runtime.backends.cuda import CudaDevice, open_gpu
from drl.runtime.backends.ort_cuda import PROVIDER, check_provider, open_ort_cuda
from drl.runtime.backends.ort_target import OrtTarget
from tests.models import random_prompts
from tests.runtime.backends.fake_cupy import FakeCupy
from tests.runtime.comparing import MODES


def _missing() -> str:
    """What tests on a GPU lack here, or nothing."""
    try:
        check_provider(onnxruntime)
        open_gpu()
    except BackendError as error:
        return str(error)
    return ""


MISSING = _missing()
on_gpu = pytest.mark.skipif(
    bool(MISSING),
    reason=f"NOT TESTED ON A GPU: {MISSING}. On one: `pip install '.[cuda]'` in an environment "
    "without onnxruntime, then `pytest tests/runtime/backends/test_ort_cuda.py`",
)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.load(tiny_bundle)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[OrtTarget, int]]:
    """Stands for a GPU and for an ONNX Runtime with CUDA, and notes what would be opened."""
    targets: list[tuple[OrtTarget, int]] = []

    def note(bundle: Bundle, module: Any, target: OrtTarget, threads: int) -> None:
        targets.append((target, threads))

    monkeypatch.setattr(ort_cuda, "open_gpu", lambda index: CudaDevice(FakeCupy(), index))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [PROVIDER])
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    monkeypatch.setattr(ort_cuda, "OrtDeviceBackend", note)
    return targets


def test_the_wheel_for_the_cpu_says_what_to_uninstall() -> None:
    plain = SimpleNamespace(__version__="1.31", get_available_providers=lambda: ["CPU"])
    message = r"onnxruntime 1\.31 is built without CUDA.*`pip uninstall onnxruntime`.*drl\[cuda\]"
    with pytest.raises(BackendError, match=message):
        check_provider(plain)


def test_missing_onnxruntime_names_the_extra(
    bundle: Bundle, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"ONNX Runtime is not installed; .*drl\[cuda\]"):
        open_ort_cuda(bundle)


def test_a_quantised_bundle_is_refused_before_anything_is_loaded(quantized_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"device='cuda' runs bundles in fp32, and .* is int8;"):
        open_backend(Bundle.load(quantized_bundle), "cuda")


def test_a_bundle_of_an_earlier_version_is_refused(bundle: Bundle) -> None:
    import dataclasses

    old = Bundle(bundle.folder, dataclasses.replace(bundle.manifest, canonical={}))
    with pytest.raises(BundleError, match="holds no canonical graphs"):
        open_ort_cuda(old)


def test_a_machine_without_a_gpu_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from drl.runtime.backends import cuda
    from drl.runtime.gpu import GpuReport

    monkeypatch.setattr(cuda, "find_gpus", lambda: GpuReport(None, (), "there is no NVIDIA driver"))
    with pytest.raises(BackendError, match=r"no NVIDIA driver; .* or use device='cpu'"):
        Engine.from_bundle(bundle.folder, "cuda")


def test_sessions_run_on_the_device_s_stream_in_full_precision(
    bundle: Bundle, opened: list[tuple[OrtTarget, int]]
) -> None:
    open_backend(bundle, "cuda:1", threads=3)
    ((target, threads),) = opened
    assert (target.provider, target.kind, target.device.index, threads) == (PROVIDER, "cuda", 1, 3)
    assert target.options["device_id"] == "1"
    assert target.options["user_compute_stream"] == str(target.device.stream)
    assert target.options["use_tf32"] == "0"


def test_the_host_has_one_thread_if_nothing_is_said(
    bundle: Bundle, opened: list[tuple[OrtTarget, int]]
) -> None:
    open_backend(bundle, "cuda")
    assert [threads for _, threads in opened] == [1]
    with pytest.raises(BackendError, match="threads must be at least 1"):
        open_backend(bundle, "cuda", threads=0)


def test_why_the_provider_did_not_start_is_told(
    bundle: Bundle,
    opened: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise BackendError(f"{PROVIDER} did not start")

    monkeypatch.setattr(ort_cuda, "OrtDeviceBackend", refuse)
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: print("Failed to load\nlibcudnn.so.9"))
    with pytest.raises(BackendError, match=r"did not start: Failed to load libcudnn\.so\.9"):
        open_ort_cuda(bundle)
    assert capsys.readouterr().out == ""


@on_gpu
@pytest.mark.parametrize("path", ["auto", "fast", "balanced", "full"])
@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_generates_what_the_cpu_generates(bundle: Bundle, path: str, mode: str) -> None:
    prompts = random_prompts(10, seed=4)
    options = {"path": path, "max_new_tokens": 20, **MODES[mode]}
    with (
        Engine.from_bundle(bundle.folder, "cuda", max_batch_size=8) as ours,
        Engine.from_bundle(bundle.folder, max_batch_size=8) as theirs,
    ):
        found, expected = (engine.generate(prompts, **options) for engine in (ours, theirs))
    for mine, other in zip(found, expected, strict=True):
        assert (mine.path, mine.tokens) == (other.path, other.tokens)
        np.testing.assert_allclose(mine.logprobs or [], other.logprobs or [], atol=1e-3)


@on_gpu
def test_a_gpu_serves_threads_and_several_engines(bundle: Bundle) -> None:
    prompts = random_prompts(12, seed=3)
    with Engine.from_bundle(bundle.folder) as engine:
        expected = [result.tokens for result in engine.generate(prompts)]
    engines = [Engine.from_bundle(bundle.folder, "cuda") for _ in range(2)]
    found: dict[int, list[list[int]]] = {}

    def serve(number: int) -> None:
        results = engines[number % 2].generate(prompts)
        found[number] = [result.tokens for result in results]

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.close()
    assert found == dict.fromkeys(range(4), expected)


@on_gpu
def test_an_application_s_stream_does_not_matter(bundle: Bundle) -> None:
    import cupy

    prompts = random_prompts(4, seed=3)
    with Engine.from_bundle(bundle.folder, "cuda") as engine:
        expected = [result.tokens for result in engine.generate(prompts)]
        with cupy.cuda.Stream(non_blocking=True):
            assert [result.tokens for result in engine.generate(prompts)] == expected


@on_gpu
def test_too_much_memory_is_one_clear_line() -> None:
    with pytest.raises(BackendError, match=r"has no .* MB left for everything .*lower max_batch"):
        open_gpu().arrays.zeros((1 << 50,), np.float32, "everything")
