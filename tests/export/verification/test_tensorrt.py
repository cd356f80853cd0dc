"""Engines are compared through a library with TensorRT's calls that runs on the host."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from drl.export.passes import ForceRoutes, TapLayers
from drl.export.tensorrt.builder import build_engines
from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.sizes import Range, Sizes
from drl.export.verification import verifier
from drl.export.verification.candidate import Candidate
from drl.export.verification.comparison import host_floats
from drl.export.verification.graph_runner import Passes
from drl.export.verification.layers import layer_places
from drl.export.verification.options import VerifyOptions
from drl.export.verification.tensorrt import TensorRT, options_of
from drl.runtime.backends.memory import HOST
from drl.runtime.backends.tensorrt.manifest import EngineManifest
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError
from tests.export.verification.damage import damaged, epsilon
from tests.models import TINY
from tests.runtime.backends.tensorrt.fake_engines import (
    MACHINE,
    FakeProcesses,
    build_fake,
    installed,
)
from tests.runtime.backends.tensorrt.fake_tensorrt import FakeTensorRT
from tests.runtime.backends.tensorrt.host_device import HostDevice


@pytest.fixture(scope="module")
def engines(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake(tiny_bundle, tmp_path_factory.mktemp("engines") / "bundle")


class Gpu(HostDevice):
    """One that is opened several times, each time after it was closed."""

    def opened(self) -> "Gpu":
        self.closed = False
        return self


@pytest.fixture
def device() -> Iterator[Gpu]:
    device = Gpu()
    with installed(FakeTensorRT(device)):
        yield device


def build(bundle: Bundle, options: BuildOptions, passes: Passes) -> None:
    processes = FakeProcesses(bundle)
    build_engines(bundle, options, processes=processes, machine=MACHINE, before=passes)


def test_engines_are_compared_and_built_anew_to_tell_states_and_take_routes(
    engines: Path, device: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def candidates(bundle: Bundle) -> dict[str, Candidate]:
        return {"tensorrt": TensorRT(bundle, "tensorrt", device.opened, build)}

    monkeypatch.setattr(verifier, "candidates", candidates)
    options = VerifyOptions(("tensorrt",), steps=3, layers=True, force_routes=True)
    (report,) = verifier.verify(Bundle.load(engines), options).backends
    assert report.failures == ()
    assert (report.precision, report.limits.states) == ("fp16", 5e-3)
    assert report.description.startswith("TensorRT 11.0.0.1")
    assert report.forced is not None
    assert report.layers is not None
    parts = [part for part in report.layers.places if part.path == "balanced"]
    assert [part.place for part in parts if part.place.startswith("decoder")] == [
        "decoder.embedding",
        "decoder.layers.0",
        "decoder.layers.2",
        "decoder.layers.3",
    ]
    # half precision, so not the reference itself
    assert all(1e-5 < part.own < 5e-3 for part in parts if ".layers." in part.place)


def test_a_mistake_that_engines_were_built_with_is_named(
    tiny_bundle: Path, device: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change = epsilon("decoder/layers.3/ffn_norm", 2.0)
    damaged(tiny_bundle, tmp_path / "bundle", "decoder.canonical.onnx", change)
    engines = Bundle.load(build_fake(tmp_path / "bundle", tmp_path / "engines"))
    monkeypatch.setattr(
        verifier,
        "candidates",
        lambda b: {"tensorrt": TensorRT(b, "tensorrt", device.opened, build)},
    )
    options = VerifyOptions(("tensorrt",), steps=1, layers=True)
    (report,) = verifier.verify(engines, options).backends
    assert report.layers is not None
    part = report.layers.culprit(report.limits)
    assert part is not None
    assert (part.place, part.path) == ("decoder.layers.3.ffn", "fast")


def test_a_comparison_that_engines_have_no_room_for_is_refused(
    tiny_bundle: Path, device: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = Sizes(new_tokens=Range(1, 4, 8), capacity=16)
    engines = Bundle.load(build_fake(tiny_bundle, tmp_path / "engines", sizes=sizes))
    monkeypatch.setattr(
        verifier,
        "candidates",
        lambda b: {"tensorrt": TensorRT(b, "tensorrt", device.opened, build)},
    )
    message = (
        r"takes 16 positions, and the comparison has 20; give a smaller --steps, or .*drl-build"
    )
    with pytest.raises(BackendError, match=message):
        verifier.verify(engines, VerifyOptions(("tensorrt",), steps=16))
    (report,) = verifier.verify(engines, VerifyOptions(("tensorrt",), steps=12)).backends
    assert report.passed


def test_engines_are_built_anew_for_the_same_sizes(engines: Path) -> None:
    (folder,) = (engines / "engines").glob("tensorrt-*")
    manifest = EngineManifest.load(folder)
    options = options_of(manifest)
    assert options.targets == ("8.9",)
    assert options.precision == "fp16"
    assert not options.plugins
    assert options.sizes.capacity == manifest.capacity == 48
    profile = manifest.engines["decoder.full"].profiles[0]
    assert profile.name == "prefill"
    dims = profile.dims
    for name, size in (("B", options.sizes.batch), ("T", options.sizes.new_tokens)):
        assert size is not None
        assert tuple(size) == dims[name]


@pytest.mark.slow
def test_graphs_that_tell_states_and_take_routes_build_with_a_real_compiler(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    options = BuildOptions("tensorrt-rtx", ("8.9",), paths=("fast",), gate=False)
    inside = {f"decoder.layers.3.{part}" for part in ("self_attention", "cross_attention")}
    passes = [TapLayers(layer_places(TINY) | inside), ForceRoutes()]
    build_engines(Bundle.load(tmp_path / "bundle"), options, before=passes)
    (folder,) = (tmp_path / "bundle" / "engines").glob("rtx-*")
    decoder = EngineManifest.load(folder).engines["decoder.fast"]
    assert {f"states.{place}" for place in inside} <= {item.name for item in decoder.outputs}
    shapes = {item.name: item.shape for item in decoder.inputs}
    assert shapes["routes.decoder.layers.3.expert_ids"] == ("B", "T", 1)
    assert "routes.decoder.layers.1.gates" not in shapes


def test_bfloat16_travels_as_its_bits() -> None:
    values = torch.tensor([[1.0, -2.5, 3e38]]).bfloat16()
    bits = values.view(torch.int16).numpy().view(np.uint16)
    assert torch.equal(host_floats(HOST, bits), values.float())
