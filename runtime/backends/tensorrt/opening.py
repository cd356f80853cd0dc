"""The TensorRT backend of a bundle, with everything checked that can be before engines load."""

from drl.runtime.backends.cuda import open_gpu
from drl.runtime.backends.device import Device
from drl.runtime.backends.tensorrt.backend import TensorRTBackend
from drl.runtime.backends.tensorrt.contexts import compiles_here
from drl.runtime.backends.tensorrt.engines import Engines
from drl.runtime.backends.tensorrt.library import (
    Flavour,
    import_library,
    installed_flavours,
    version,
)
from drl.runtime.backends.tensorrt.runtime_cache import RuntimeCache, cache_file
from drl.runtime.backends.tensorrt.store import find_engines
from drl.runtime.bundle import Bundle


def open_tensorrt(
    bundle: Bundle, flavour: Flavour | None = None, device: Device | int = 0
) -> TensorRTBackend:
    """Load a bundle's engines.

    Args:
        bundle: A loaded bundle.
        flavour: Of TensorRT; None takes the first one that is installed and has engines.
        device: Where they run: the number of a GPU as CUDA counts them, or a device.

    Raises:
        BackendError: TensorRT is not installed, there is no GPU or no driver, there are no engines
            for them, or one of these does not load.
        BundleError: `engines.json` is damaged or of a newer format.
    """
    if flavour is not None:
        versions = {flavour: version(import_library(flavour))}
    else:
        versions = installed_flavours()
        if not versions:
            import_library("tensorrt")  # says what is missing
    if isinstance(device, int):
        device = open_gpu(device)
    folder = find_engines(bundle, flavour, device.compute_capability, versions)
    described = folder.manifest
    module = import_library(described.flavour)
    cache = RuntimeCache(cache_file(described)) if compiles_here(described.flavour) else None
    return TensorRTBackend(Engines(bundle.manifest, folder, module, device, cache))
