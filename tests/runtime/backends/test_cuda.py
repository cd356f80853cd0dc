"""GPUs through CuPy: what is missing is said, memory that runs out is named, streams are kept."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from drl.runtime import BackendError
from drl.runtime.backends import cuda
from drl.runtime.backends.cuda import CudaDevice, open_gpu
from drl.runtime.gpu import Gpu, GpuReport
from tests.runtime.backends.fake_cupy import (
    CompileException,
    CUDARuntimeError,
    FakeCupy,
    OutOfMemoryError,
)

ONE = GpuReport("13.0", (Gpu("NVIDIA L4", "8.9", 24 << 30),))


@pytest.fixture
def cupy() -> FakeCupy:
    return FakeCupy()


@pytest.fixture
def device(cupy: FakeCupy) -> CudaDevice:
    return CudaDevice(cupy, 0)


def test_a_machine_without_a_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_gpus", lambda: GpuReport(None, (), "there is no NVIDIA driver"))
    with pytest.raises(BackendError, match=r"there is no NVIDIA driver; check with `nvidia-smi`"):
        open_gpu()


@pytest.mark.parametrize(
    ("count", "names"), [(1, "cuda:0 only"), (2, "cuda:0 to cuda:1")], ids=["one", "two"]
)
def test_a_gpu_that_there_is_not_names_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, count: int, names: str
) -> None:
    monkeypatch.setattr(cuda, "find_gpus", lambda: GpuReport("13.0", ONE.gpus * count))
    with pytest.raises(BackendError, match=f"no GPU cuda:2; this process may use {names}"):
        open_gpu(2)


def test_missing_cupy_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_gpus", lambda: ONE)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r'CuPy.* not installed; .*"cupy-cuda13x\[ctk\]"`$'):
        open_gpu()


def test_broken_cupy_gives_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "find_gpus", lambda: ONE)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    reason = "'\\n=====\\nno libcudart.so.13\\n====='"
    (tmp_path / "cupy.py").write_text(f"raise ImportError({reason})")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match=r"CuPy does not load \(no libcudart\.so\.13\); install"):
        open_gpu()


def test_a_driver_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_gpus", lambda: ONE)
    old = FakeCupy(fault="cudaErrorInsufficientDriver: too old")
    monkeypatch.setattr(cuda, "import_cupy", lambda: old)
    with pytest.raises(BackendError, match=r"cannot use GPU 0 \(cudaErrorIns.*update the driver"):
        open_gpu()


def test_a_device_tells_what_it_is(monkeypatch: pytest.MonkeyPatch, cupy: FakeCupy) -> None:
    monkeypatch.setattr(cuda, "find_gpus", lambda: ONE)
    monkeypatch.setattr(cuda, "import_cupy", lambda: cupy)
    device = open_gpu()
    assert device.name == "Fake GPU (cuda:0)"
    assert device.compute_capability == "8.9"
    assert device.stream == cupy.streams[0].ptr != 0


@pytest.mark.parametrize("way", ["zeros", "full", "empty", "from_host", "gather"])
def test_memory_that_runs_out_is_named_with_its_purpose(cupy: FakeCupy, way: str) -> None:
    device = CudaDevice(cupy, 0)
    arrays, shape = device.arrays, (300, 1000)
    big = arrays.zeros(shape, np.float32, "the cache")
    cupy.limit = 1 << 20
    attempts = {
        "zeros": lambda: arrays.zeros(shape, np.float32, "the cache"),
        "full": lambda: arrays.full(shape, 1.0, np.float32, "the cache"),
        "empty": lambda: device.empty(shape, np.float32, "the cache"),
        "from_host": lambda: arrays.from_host(np.zeros(shape, np.float32), "the cache"),
        "gather": lambda: arrays.gather(big, list(range(300))),
    }
    what = "some rows of a batch" if way == "gather" else "the cache"
    message = rf"GPU 0 has no 1\.2 MB left for {what} \(5\.2 MB of 83\.9 MB are free\); lower max_"
    with pytest.raises(BackendError, match=message):
        attempts[way]()


def test_what_fails_on_the_device_is_one_line_that_says_what_was_done(device: CudaDevice) -> None:
    with pytest.raises(BackendError, match="waiting failed: cudaErrorIllegalAddress"):  # noqa: SIM117
        with device.failures("waiting"):
            raise CUDARuntimeError("cudaErrorIllegalAddress")


def test_bugs_keep_their_own_exception(device: CudaDevice) -> None:
    with pytest.raises(ZeroDivisionError), device.failures("waiting"):
        _ = 1 / 0


def test_copies_to_the_host_are_there_once_the_stream_was_waited_for(device: CudaDevice) -> None:
    host = device.pinned((2, 3), np.float32)
    back = device.pinned((2, 3), np.float32)
    host[:], back[:] = 7, 0
    with device.arrays.ordered():
        there = device.empty((2, 3), np.float32, "a test")
        device.upload(host, there)
        host[:] = 8
        device.download(there, back)
        there[:] = 9.0  # comes after the copy
    assert (back == 0).all()
    device.synchronize()
    assert (back == 7).all()


def test_pinned_memory_may_be_empty(device: CudaDevice) -> None:
    assert device.pinned((2, 0), np.int32).shape == (2, 0)


def test_a_copy_within_the_device(device: CudaDevice) -> None:
    with device.arrays.ordered():
        source = device.arrays.full((4,), 3.0, np.float32, "a test")
        target = device.arrays.zeros((4,), np.float32, "a test")
        device.copy(source, target)
        assert device.arrays.to_host(target).tolist() == [3.0] * 4


def test_adopted_memory_keeps_its_owner(device: CudaDevice) -> None:
    owner = np.arange(6, dtype=np.float32)
    array = device.adopt(owner.ctypes.data, (2, 3), np.float32, owner)
    assert sys.getrefcount(owner) > 2
    del owner
    assert device.arrays.to_host(array).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert device.adopt(0, (2, 0), np.float32, None).shape == (2, 0)


def test_arrays_that_are_not_contiguous_have_no_address(device: CudaDevice) -> None:
    array = device.arrays.zeros((4, 4), np.float32, "a test")
    with pytest.raises(ValueError, match="C-contiguous"):
        device.address(array[:, :2])


def test_every_thread_works_on_the_device_s_stream(device: CudaDevice, cupy: FakeCupy) -> None:
    found: list[np.ndarray] = []

    def work() -> None:
        array = device.arrays.zeros((3,), np.float32, "a test")
        with device.arrays.ordered():
            array[1] = 5.0
        found.append(device.arrays.to_host(array))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].tolist() == [0, 5, 0]
    assert cupy.entered == []


def test_work_outside_the_stream_is_noticed_here(device: CudaDevice) -> None:
    array = device.arrays.zeros((3,), np.float32, "a test")
    with pytest.raises(AssertionError, match="default stream"):
        array[1] = 5.0


def test_captured_work_runs_when_it_is_launched(device: CudaDevice) -> None:
    host, back = device.pinned((2,), np.float32), device.pinned((2,), np.float32)
    with device.arrays.ordered():
        there = device.empty((2,), np.float32, "a test")

        def work() -> None:
            device.upload(host, there)
            device.download(there, back)

        graph = device.capture(work)
        for value in (1.0, 2.0):
            host[:] = value
            graph.launch()
            device.synchronize()
            assert back.tolist() == [value] * 2


def test_a_capture_that_fails_leaves_the_stream_in_order(
    device: CudaDevice, cupy: FakeCupy
) -> None:
    def work() -> None:
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")

    with pytest.raises(BackendError, match="capturing a CUDA graph failed: cudaErrorStreamCapt"):
        device.capture(work)
    assert cupy.streams[0].recorded is None
    device.synchronize()


def test_closing_frees_what_is_kept_for_reuse(device: CudaDevice, cupy: FakeCupy) -> None:
    device.close()
    assert cupy.freed == cupy.streams
    assert cupy.freed_pinned


def test_memory_that_runs_out_or_cuda_that_fails_in_assignments_is_an_error_of_ours(
    device: CudaDevice,
) -> None:
    message = r"work on the GPU failed: GPU 0 has no memory left \(5\.2 MB of 83\.9 .*; lower max_"
    with pytest.raises(BackendError, match=message), device.arrays.ordered():
        raise OutOfMemoryError("Out of memory allocating 512 bytes")
    message = "work on the GPU failed: cudaErrorIllegalAddress; GPU 0 may have to be used"
    with pytest.raises(BackendError, match=message), device.arrays.ordered():
        raise CUDARuntimeError("cudaErrorIllegalAddress")
    message = r"CuPy cannot compile a kernel for GPU 0 \(x\.cu: no vector_types\.h\); reinstall it"
    with pytest.raises(BackendError, match=message), device.arrays.ordered():
        raise CompileException("x.cu:\nno vector_types.h")


def test_ranking_without_memory_is_an_error_of_ours(cupy: FakeCupy) -> None:
    device = CudaDevice(cupy, 0)
    with device.arrays.ordered():
        logits = device.arrays.zeros((300, 1000), np.float32, "logits")
        cupy.limit = 1 << 20
        with pytest.raises(BackendError, match="ranking tokens failed: GPU 0 has no memory left"):
            device.rank(logits, 4)


def test_a_graph_that_does_not_launch_is_an_error_of_ours(device: CudaDevice) -> None:
    def fault() -> None:
        raise CUDARuntimeError("cudaErrorLaunchFailure")

    with device.arrays.ordered():
        graph = device.capture(lambda: device._stream.do(fault))
        with pytest.raises(BackendError, match="launching a CUDA graph failed: cudaErrorLaunchF"):
            graph.launch()


def test_memory_of_many_megabytes_is_not_page_locked(device: CudaDevice, cupy: FakeCupy) -> None:
    small, large = (device.pinned((mebi, 1 << 18), np.float32) for mebi in (16, 17))
    assert small.nbytes, large.nbytes == (16 << 20, 17 << 20)
    assert cupy.pinned == [16 << 20]


def test_free_memory_is_the_device_s(device: CudaDevice) -> None:
    assert device.free_memory() == 5 << 20


def test_trimming_frees_what_is_kept_for_reuse(device: CudaDevice, cupy: FakeCupy) -> None:
    device.trim()
    assert cupy.freed == cupy.streams
