"""Weights stay on the device as far as activations and caches leave room for them."""

import json
import shutil
from pathlib import Path

import pytest

from drl.runtime import BackendError, Bundle
from drl.runtime.backends.tensorrt.sizes import EngineSizes
from drl.runtime.backends.tensorrt.streaming import largest_caches
from tests.runtime.backends.tensorrt.fake_engines import open_fake
from tests.runtime.backends.tensorrt.fake_tensorrt import FakeTensorRT
from tests.runtime.backends.tensorrt.host_device import HostDevice

NAME = "tensorrt-11.0.0.1-sm89"
SIZES = EngineSizes(rows=2, sources=2, source_length=20, capacity=16, command="")


@pytest.fixture
def streaming(tiny_engines: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_engines, folder)
    file = folder / "engines" / NAME / "engines.json"
    document = json.loads(file.read_text())
    document["options"]["weight_streaming"] = True
    file.write_text(json.dumps(document))
    return folder


def test_caches_of_all_paths_are_counted(tiny_bundle: Path) -> None:
    manifest = Bundle.load(tiny_bundle).manifest
    entry = manifest.cache.kv_heads * manifest.cache.head_dim * 2 * 2  # a key and a value
    layers = [layer for path in manifest.paths for layer in path.layers]
    cache = len(layers) * entry * 2 * (16 + 20)
    assert largest_caches(manifest, SIZES) == cache + 2 * manifest.limits.vocab_size * 4


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_every_engine_keeps_the_same_share_of_what_is_left(streaming: Path, share: float) -> None:
    roomy = open_fake(streaming)
    weights = sum(engine.streamable_weights_size for engine in roomy.library.engines)
    activations = max(engine.device_memory_size_v2 for engine in roomy.library.engines)
    caches = largest_caches(roomy.bundle.manifest, roomy.backend._engines.sizes)
    device = HostDevice(capacity=activations + caches + int(weights * share))
    opened = open_fake(streaming, device)
    for engine in opened.library.engines:
        assert engine.budget == pytest.approx(engine.streamable_weights_size * share, abs=1)
    budgets = sum(engine.weight_streaming_budget_v2 for engine in opened.library.engines)
    assert activations + caches + budgets <= device.capacity


def test_less_than_the_caches_need_keeps_no_weights(streaming: Path) -> None:
    opened = open_fake(streaming, HostDevice(capacity=200_000))
    assert [engine.budget for engine in opened.library.engines] == [0] * 7


def test_a_budget_that_is_not_taken_is_an_error(streaming: Path) -> None:
    device = HostDevice(capacity=200_000)
    library = FakeTensorRT(device)
    library.keeps_weights = True
    with pytest.raises(BackendError, match=r"cannot keep only 0 bytes of the weights of encoder"):
        open_fake(streaming, device, library=library)
