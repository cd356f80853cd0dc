"""Which engines a bundle should have: its lowered graphs, and what each is built with."""

from collections.abc import Mapping
from dataclasses import dataclass

from drl.plugins.cuda.plugin_nodes import PluginForm
from drl.runtime.backends.tensorrt.library import Flavour
from drl.runtime.backends.tensorrt.manifest import EngineOptions, ProfileInfo
from drl.runtime.manifest import TensorInfo


@dataclass(frozen=True)
class WantedGraph:
    """A lowered graph.

    Attributes:
        sha256: Of the graph before plugins took the place of operators, weights included.
        inputs: Of the graph, in its order; dimensions that vary by name.
        outputs: Likewise.
        profiles: To build it with.
        plugins: That it is built with.
    """

    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profiles: tuple[ProfileInfo, ...]
    plugins: tuple[PluginForm, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """The engines of a bundle, whatever GPU they are for.

    Attributes:
        flavour: Of TensorRT.
        library_version: Of the library that is here.
        precision: Of the lowered graphs.
        capacity: Positions of the KV cache.
        candidates: How many of the largest logits the decoder tells.
        plugins: SHA-256 of every plugin that a graph is built with, by name.
        options: Properties of the engines.
        bundle: Digest of what the graphs were lowered from.
        arguments: Options of `drl-build` that ask for the same.
        graphs: By name, every path's.
    """

    flavour: Flavour
    library_version: str
    precision: str
    capacity: int
    candidates: int
    plugins: Mapping[str, str]
    options: EngineOptions
    bundle: str
    arguments: tuple[str, ...]
    graphs: Mapping[str, WantedGraph]
