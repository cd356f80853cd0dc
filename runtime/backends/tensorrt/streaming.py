"""How much of the weights stays on the device, where engines may stream them from the host."""

from collections.abc import Sequence

from drl.runtime.backends.tensorrt.contexts import LoadedEngine
from drl.runtime.backends.tensorrt.sizes import EngineSizes
from drl.runtime.manifest import Manifest

_HALF = 2  # bytes of a key or a value
_FLOAT = 4


def place_weights(engines: Sequence[LoadedEngine], room: int) -> None:
    """Keep what there is room for of the weights on the device, the same share of each engine.

    Args:
        engines: All, without contexts yet.
        room: Bytes of the device for weights and activations.

    Raises:
        BackendError: TensorRT does not take a budget.
    """
    room = max(0, room - max(engine.memory for engine in engines))
    sizes = [engine.streamable for engine in engines]
    total = sum(sizes)
    for engine, size in zip(engines, sizes, strict=True):
        engine.keep_weights(size if total <= room else room * size // total)


def largest_caches(manifest: Manifest, sizes: EngineSizes) -> int:
    """Bytes of every path's cache and logits when as many rows run as the engines take."""
    cache = manifest.cache
    layers = sum(len(path.layers) for path in manifest.paths)
    positions = sizes.rows * sizes.capacity + sizes.sources * sizes.source_length
    blocks = 2 * _HALF * layers * cache.kv_heads * cache.head_dim * positions
    return blocks + sizes.rows * manifest.limits.vocab_size * _FLOAT
