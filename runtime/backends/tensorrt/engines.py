"""A bundle's engines, from the files to the device."""

from typing import Any

from drl.runtime.backends.device import Device
from drl.runtime.backends.limits import BackendLimits
from drl.runtime.backends.tensorrt.contexts import Activations, Library, LoadedEngine
from drl.runtime.backends.tensorrt.plan import Plan
from drl.runtime.backends.tensorrt.runtime_cache import RuntimeCache
from drl.runtime.backends.tensorrt.sizes import EngineSizes
from drl.runtime.backends.tensorrt.store import EngineFolder
from drl.runtime.backends.tensorrt.streaming import largest_caches, place_weights
from drl.runtime.manifest import Manifest


class Engines:
    """All engines of a bundle, on the device. What they need of its memory is taken at once.

    Args:
        manifest: The bundle's.
        folder: Engines that fit the bundle, the device and the library.
        module: The library.
        device: Where they run.
        cache: Keeps kernels that are compiled here; None where none are.

    Attributes:
        manifest: The bundle's.
        sizes: What the engines take.
        plan: What they run with.
        encoder: The encoder.
        bridges, decoders: Of every path.

    Raises:
        BackendError: An engine is missing, TensorRT refuses it, or the device has no memory.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: EngineFolder,
        module: Any,
        device: Device,
        cache: RuntimeCache | None = None,
    ) -> None:
        self.manifest = manifest
        self.sizes = EngineSizes.of(folder, manifest)
        described = folder.manifest
        library = Library(
            described.flavour, module, device, described.options, folder.command, cache
        )
        self._cache = cache
        self._device = device
        names = [path.name for path in manifest.paths]

        def load(name: str) -> LoadedEngine:
            return library.load(name, folder.file(name), folder.read(name), folder.engine(name))

        with device.arrays.ordered():
            self.encoder = load("encoder")
            self.bridges = [load(f"bridge.{name}") for name in names]
            self.decoders = [load(f"decoder.{name}") for name in names]
            loaded = self.encoder, *self.bridges, *self.decoders
            if described.options.weight_streaming:
                room = device.free_memory() - largest_caches(manifest, self.sizes)
                place_weights(loaded, room)
            memory = max(engine.memory for engine in loaded)
            self.plan = Plan(device, folder, Activations(device, memory))

    @property
    def limits(self) -> BackendLimits:
        """What requests are held to."""
        return self.sizes.limits

    def close(self) -> None:
        """Drop the engines, which frees their memory once nothing else holds it."""
        with self._device.arrays.ordered():
            if self._cache is not None:
                self._cache.save()
            del self.encoder, self.bridges, self.decoders, self.plan
