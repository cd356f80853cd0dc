"""What is missing or does not fit is told in one line before an engine is deserialised."""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drl.runtime import BackendError, Engine
from drl.runtime.backends.tensorrt.manifest import EngineManifest
from drl.runtime.gpu import GpuReport
from tests.runtime.backends.tensorrt.fake_engines import build_fake, installed, open_fake
from tests.runtime.backends.tensorrt.fake_tensorrt import MAGIC, FakeTensorRT
from tests.runtime.backends.tensorrt.host_device import HostDevice

NAME = "tensorrt-11.0.0.1-sm89"


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a bundle whose `engines.json` is changed."""
    shutil.copytree(source, target)
    file = target / "engines" / NAME / "engines.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return target


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt-rtx", "tensorrt:1"])
def test_a_machine_without_a_gpu_says_so(
    device: str, tiny_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "drl.runtime.backends.cuda.find_gpus",
        lambda: GpuReport(None, (), "there is no NVIDIA driver"),
    )
    library = FakeTensorRT(HostDevice())
    with (
        installed(library),
        installed(library, "tensorrt-rtx"),
        pytest.raises(BackendError, match=r"^there is no NVIDIA driver; check with `nvidia-smi`"),
    ):
        Engine.from_bundle(tiny_engines, device=device)
    assert not library.engines


def test_a_library_that_is_missing_is_named_with_how_to_install_it(
    tiny_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"^TensorRT is not installed; install it from NVIDIA"):
        Engine.from_bundle(tiny_engines, device="tensorrt")
    with pytest.raises(BackendError, match=r"^TensorRT for RTX is not installed; run `pip"):
        Engine.from_bundle(tiny_engines, device="tensorrt-rtx")


def test_engines_are_found_whichever_flavour_has_them(tiny_engines: Path) -> None:
    """`device="tensorrt"` takes the flavour that has engines for this GPU."""
    device = HostDevice()
    opened = open_fake(tiny_engines, device, flavour=None)
    assert opened.backend.name == "TensorRT 11.0.0.1, a host that is strict, fp16"
    with pytest.raises(BackendError, match="are for TensorRT, and not for TensorRT for RTX"):
        open_fake(tiny_engines, device, flavour="tensorrt-rtx")


def test_a_bundle_without_engines_names_the_command(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"has no TensorRT engines; run `drl-build .*tiny "):
        open_fake(tiny_bundle)


def test_engines_of_another_library_or_gpu_are_never_deserialised(tiny_engines: Path) -> None:
    device = HostDevice()
    newer = FakeTensorRT(device, "11.1.0.2")
    with pytest.raises(BackendError, match=r"built with TensorRT 11\.0\.0\.1, and 11\.1\.0\.2 is"):
        open_fake(tiny_engines, device, library=newer)
    device.compute_capability = "9.0"
    library = FakeTensorRT(device)
    with pytest.raises(BackendError, match=r"are for compute capability 8\.9, and this GPU has 9"):
        open_fake(tiny_engines, device, library=library)
    assert not newer.engines
    assert not library.engines


def test_a_damaged_engine_is_never_deserialised(tiny_engines: Path, tmp_path: Path) -> None:
    folder = changed(tiny_engines, tmp_path / "bundle", lambda document: None)
    file = folder / "engines" / NAME / "encoder.engine"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    library = FakeTensorRT(HostDevice())
    with pytest.raises(BackendError, match=r"engine of encoder .* is damaged: .*run `drl-build"):
        open_fake(folder, library.device, library=library)
    assert not library.engines


def test_an_engine_that_tensorrt_refuses_comes_with_its_reason(
    tiny_engines: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    content = b"no engine at all"

    def describe(document: dict[str, Any]) -> None:
        engine = document["engines"]["encoder"]
        engine |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    changed(tiny_engines, folder, describe)
    (folder / "engines" / NAME / "encoder.engine").write_bytes(content)
    with pytest.raises(
        BackendError, match=r"^TensorRT cannot load .*encoder\.engine: .*magicTag.*; run `drl-build"
    ):
        open_fake(folder)


def test_an_engine_with_other_tensors_than_its_manifest_says_is_refused(
    tiny_engines: Path, tmp_path: Path
) -> None:
    def describe(document: dict[str, Any]) -> None:
        document["engines"]["encoder"]["outputs"].pop()

    folder = changed(tiny_engines, tmp_path / "bundle", describe)
    with pytest.raises(BackendError, match=r"engine of encoder that is not the one that engines"):
        open_fake(folder)


def test_a_path_whose_engine_was_not_built_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = build_fake(tiny_bundle, tmp_path / "bundle", paths=("fast", "full"))
    with pytest.raises(BackendError, match=r"no engine of bridge\.balanced; .*--path balanced`"):
        open_fake(folder)


def test_a_device_with_too_little_memory_says_what_for(tiny_engines: Path) -> None:
    with pytest.raises(BackendError, match=r"no \d+ bytes left for what engines work in"):
        open_fake(tiny_engines, HostDevice(capacity=1000))
    opened = open_fake(tiny_engines, HostDevice(capacity=200_000))
    with pytest.raises(BackendError, match=r"no \d+ bytes left for keys and values of 8 sequences"):
        opened.engine().generate([[5, 6]] * 8, path="full", max_new_tokens=4)


def test_options_that_engines_were_built_with_are_taken_up(
    tiny_engines: Path, tmp_path: Path
) -> None:
    def describe(document: dict[str, Any]) -> None:
        document["options"] = {
            "hardware_compatible": False,
            "version_compatible": True,
            "weight_streaming": True,
        }

    opened = open_fake(changed(tiny_engines, tmp_path / "bundle", describe))
    assert all(e.budget == e.streamable_weights_size for e in opened.library.engines)
    assert [runtime.engine_host_code_allowed for runtime in opened.library.runtimes] == [True]
    plain = open_fake(tiny_engines)
    assert all(engine.budget is None for engine in plain.library.engines)
    assert [runtime.engine_host_code_allowed for runtime in plain.library.runtimes] == [False]


def test_every_path_has_engines_on_common_activation_memory(tiny_engines: Path) -> None:
    opened = open_fake(tiny_engines)
    opened.engine().generate([[5, 6, 7]], path="full", max_new_tokens=3)
    opened.engine().generate([[5, 6, 7]], path="fast", max_new_tokens=3)
    assert len(opened.library.engines) == 7
    memories = {context.memory for context in opened.library.contexts}
    largest = max(engine.device_memory_size_v2 for engine in opened.library.engines)
    assert [size for _, size in memories if size >= largest] == [largest]


def test_the_fake_writes_the_manifest_that_drl_build_writes(tiny_engines: Path) -> None:
    manifest = EngineManifest.load(tiny_engines / "engines" / NAME)
    assert manifest.candidates == 8
    assert dataclasses.asdict(manifest)["flavour"] == "tensorrt"
    file = tiny_engines / "engines" / NAME / manifest.engines["encoder"].file
    assert file.read_bytes().startswith(MAGIC)


def test_a_library_in_which_cuda_does_not_start_says_so(tiny_engines: Path) -> None:
    library = FakeTensorRT(HostDevice())
    library.starts = False
    with pytest.raises(
        BackendError, match=r"^TensorRT does not start: CUDA init.*error: 35\.; see `drl-doctor`$"
    ):
        open_fake(tiny_engines, library.device, library=library)
