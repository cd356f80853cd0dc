"""The engines that a bundle holds, on an NVIDIA GPU."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from drl.export.tensorrt.builder import build_engines
from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.sizes import Range, Sizes
from drl.export.verification.candidate import Candidate
from drl.export.verification.engine_runner import EngineRunner
from drl.export.verification.graph_backend import GraphBackend
from drl.export.verification.graph_runner import Passes
from drl.runtime.backends import Backend
from drl.runtime.backends.cuda import open_gpu
from drl.runtime.backends.device import Device
from drl.runtime.backends.tensorrt.engines import Engines
from drl.runtime.backends.tensorrt.library import Flavour, import_library, title, version
from drl.runtime.backends.tensorrt.manifest import EngineManifest
from drl.runtime.backends.tensorrt.opening import open_tensorrt
from drl.runtime.backends.tensorrt.store import EngineFolder, find_engines
from drl.runtime.backends.tensorrt.tensors import by_name, numpy_dtype
from drl.runtime.bundle import Bundle

Build = Callable[[Bundle, BuildOptions, Passes], object]
"""Builds a bundle's engines, with passes over the canonical graphs."""


def _first_gpu() -> Device:
    return open_gpu(0)


def _build(bundle: Bundle, options: BuildOptions, passes: Passes) -> object:
    return build_engines(bundle, options, before=passes)


class TensorRT(Candidate):
    """Engines of a flavour of TensorRT, as `device="tensorrt"` runs them.

    With passes over the graphs, engines are built anew, for the same sizes and with the same
    options, beside a copy of the bundle.

    Args:
        bundle: The bundle.
        flavour: Of TensorRT.
        open_device: Opens the device where they run; by default the first GPU.
        build: Builds engines; by default as `drl-build` does.
    """

    def __init__(
        self,
        bundle: Bundle,
        flavour: Flavour,
        open_device: Callable[[], Device] = _first_gpu,
        build: Build = _build,
    ) -> None:
        super().__init__(bundle)
        self.name: Flavour = flavour
        self._open_device = open_device
        self._build = build
        self._made = ExitStack()

    def check(self) -> None:
        """See `Candidate.check`; learns the precision of the engines too."""
        self.precision = self._find(self.bundle).manifest.precision

    def open(self) -> Backend:
        """See `Candidate.open`."""
        return open_tensorrt(self.bundle, self.name, self._open_device())

    def open_with(self, passes: Passes) -> GraphBackend:
        """See `Candidate.open_with`."""
        made = tempfile.TemporaryDirectory(prefix="drl-verify-")
        beside = _copy(self.bundle, Path(self._made.enter_context(made)))
        self._build(beside, options_of(self._find(self.bundle).manifest), passes)
        found = self._find(beside)
        device, described = self._open_device(), found.manifest
        engines = Engines(beside.manifest, found, import_library(self.name), device)
        name = f"{title(self.name)} {described.library_version}, {device.name}"
        path = self.bundle.manifest.paths[0]
        past = by_name(found.engine(f"decoder.{path.name}").inputs)[f"past_k.{path.layers[0]}"]
        return GraphBackend(
            self.bundle.manifest,
            EngineRunner(engines, name),
            specialised=True,
            cache_dtype=numpy_dtype(past),
            capacity=described.capacity,
        )

    def close(self) -> None:
        """Remove the engines that were built."""
        self._made.close()

    def _find(self, bundle: Bundle) -> EngineFolder:
        versions = {self.name: version(import_library(self.name))}
        device = self._open_device()
        try:
            return find_engines(bundle, self.name, device.compute_capability, versions)
        finally:
            device.close()


def options_of(engines: EngineManifest) -> BuildOptions:
    """Return the options that build engines like these, without running the graphs first."""
    encoder = engines.engines["encoder"].profiles[0].dims
    decoder = next(e for name, e in engines.engines.items() if name.startswith("decoder."))
    widest = max((profile.dims for profile in decoder.profiles), key=lambda dims: dims["T"][2])
    sizes = Sizes(
        batch=Range(*widest["B"]),
        source=Range(*encoder["S"]),
        new_tokens=Range(*widest["T"]),
        sources=Range(*widest["R"]),
        capacity=engines.capacity,
    )
    return BuildOptions(
        engines.flavour,
        (engines.compute_capability,),
        engines.precision,  # type: ignore[arg-type]
        sizes,
        engines.candidates,
        bool(engines.plugins),
        engines.options,
        gate=False,
    )


def _copy(bundle: Bundle, folder: Path) -> Bundle:
    """Copy a bundle without its engines. Weights too: what reads them follows no links."""
    for name in bundle.manifest.files:
        shutil.copyfile(bundle.file(name), folder / name)
    return Bundle(folder, bundle.manifest)
