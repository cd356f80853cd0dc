"""Engines of the fake TensorRT, written by `drl-build`'s own code into a copy of a bundle."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from drl.export.tensorrt.builder import build_engines
from drl.export.tensorrt.engine_process import Built
from drl.export.tensorrt.job import Job
from drl.export.tensorrt.options import BuildOptions
from drl.runtime import Bundle, Engine
from drl.runtime.backends.tensorrt.backend import TensorRTBackend
from drl.runtime.backends.tensorrt.library import Flavour
from drl.runtime.backends.tensorrt.opening import open_tensorrt
from drl.runtime.gpu import Gpu, GpuReport
from tests.runtime.backends.tensorrt.bfloat16 import compute_in_float32
from tests.runtime.backends.tensorrt.fake_tensorrt import MAGIC, FakeTensorRT
from tests.runtime.backends.tensorrt.host_device import HostDevice

MACHINE = GpuReport("13.0", (Gpu(HostDevice.name, HostDevice.compute_capability, 1 << 34),))
_GRAPHS = "graphs"


class FakeProcesses:
    """Builds an engine by noting its graph, which it keeps, and its profiles."""

    def __init__(self, bundle: Bundle) -> None:
        self._keep = bundle.folder / _GRAPHS
        self._paths = {path.name: path for path in bundle.manifest.paths}
        self._bfloat16: dict[str, list[str]] = {}

    def build(self, job: Job, listener: object) -> Built:
        if not self._keep.exists():
            shutil.copytree(job.graph.parent, self._keep)
            graphs = self._keep.glob("*.onnx")
            self._bfloat16 = {path.name: compute_in_float32(path) for path in graphs}
        stack, _, path = job.name.partition(".")
        described = {
            "graph": str(self._keep / job.graph.name),
            "keep_ratio": self._paths[path].keep_ratio if stack == "bridge" else None,
            "bfloat16": self._bfloat16[job.graph.name],
            "sizes": {"k": self._paths[path].experts_per_token} if stack == "decoder" else {},
            "profiles": [
                {name: asdict(shapes) for name, shapes in profile.items()}
                for profile in job.profiles
            ],
        }
        job.engine.write_bytes(MAGIC + json.dumps(described).encode())
        graph = onnx.load(job.graph, load_external_data=False).graph
        return Built(
            tuple(item.name for item in graph.input),
            tuple(item.name for item in graph.output),
            layers=len(graph.node),
            seconds=0.1,
        )

    def stop(self) -> None:
        """Nothing goes on."""


@contextmanager
def installed(library: FakeTensorRT, flavour: Flavour = "tensorrt") -> Iterator[None]:
    """The fake in the place of a library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, flavour.replace("-", "_"), library)
        yield


def build_fake(source: Path, target: Path, flavour: Flavour = "tensorrt", **options: Any) -> Path:
    """A copy of a bundle with engines of the fake. Options are those of `BuildOptions`."""
    shutil.copytree(source, target)
    bundle = Bundle.load(target)
    chosen = BuildOptions(flavour, **{"plugins": False, "gate": False, **options})
    with installed(FakeTensorRT(HostDevice()), flavour):
        build_engines(bundle, chosen, processes=FakeProcesses(bundle), machine=MACHINE)
    return target


@dataclass
class Opened:
    """A backend of the fake, with what to look into."""

    bundle: Bundle
    backend: TensorRTBackend
    library: FakeTensorRT
    device: HostDevice

    def engine(self, max_batch_size: int = 32) -> Engine:
        return Engine(self.bundle, self.backend, max_batch_size)


def open_fake(
    folder: Path,
    device: HostDevice | None = None,
    flavour: Flavour | None = "tensorrt",
    library: FakeTensorRT | None = None,
) -> Opened:
    """Open the engines that `build_fake` has made."""
    device = device or HostDevice()
    library = library or FakeTensorRT(device)
    bundle = Bundle.load(folder, verify_hashes=False)
    with installed(library, flavour or "tensorrt"):
        backend = open_tensorrt(bundle, flavour, device)
    return Opened(bundle, backend, library, device)
