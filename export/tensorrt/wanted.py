"""Lowering a bundle, and working out which engines it should have."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from drl.export.tensorrt.graph_digest import GraphDigests
from drl.export.tensorrt.lowering import LoweredGraph, LoweringOptions, lower_bundle
from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.plan import Wanted, WantedGraph
from drl.export.tensorrt.plugins import plugin_digests, put_plugins
from drl.export.tensorrt.profiles import profiles_of
from drl.export.tensorrt.progress import Progress
from drl.export.tensorrt.sizes import Dimensions
from drl.runtime.backends.tensorrt.library import takes_plugins
from drl.runtime.backends.tensorrt.manifest import bundle_digest
from drl.runtime.bundle import Bundle
from drl.runtime.errors import ExportError
from drl.runtime.manifest import TensorInfo

_CANDIDATES = 64
_DTYPES = {ir.DataType.FLOAT: "float32"}  # others go by their own name


@dataclass(frozen=True)
class Lowering:
    """Lowered graphs.

    Attributes:
        folder: Holds `<name>.onnx` for each, and their weights.
        wanted: The engines that they become.
        seconds: That it took.
    """

    folder: Path
    wanted: Wanted
    seconds: float


def lower(
    bundle: Bundle,
    options: BuildOptions,
    sizes: Dimensions,
    library_version: str,
    work: Path,
    before: Sequence[ir.passes.PassBase] = (),
) -> Lowering:
    """Lower the graphs of all paths to a folder in `work`.

    Args:
        bundle: Holds canonical graphs.
        options: Precision, plugins and the like.
        sizes: Of every named dimension.
        library_version: Of the library that will build.
        work: Gets a folder of graphs.
        before: Passes over the canonical graphs.

    Raises:
        ExportError: The options do not fit the bundle.
    """
    began = time.perf_counter()
    folder = work / "graphs"
    folder.mkdir()
    plugins = takes_plugins(options.flavour) if options.plugins is None else options.plugins
    candidates = _candidates(options.candidates, bundle.manifest.limits.vocab_size)
    how = LoweringOptions(options.precision, sizes.capacity, candidates, plugins)
    lowered = lower_bundle(bundle, how, folder, before)
    digests = GraphDigests(folder)
    graphs = {graph.name: _want(bundle, graph, sizes, digests, plugins) for graph in lowered}
    used = {form.name for graph in graphs.values() for form in graph.plugins}
    wanted = Wanted(
        flavour=options.flavour,
        library_version=library_version,
        precision=options.precision,
        capacity=sizes.capacity,
        candidates=candidates,
        plugins=plugin_digests(used) if used else {},
        options=options.engine,
        bundle=bundle_digest(bundle.manifest),
        arguments=options.arguments(),
        graphs=graphs,
    )
    return Lowering(folder, wanted, time.perf_counter() - began)


def _want(
    bundle: Bundle, graph: LoweredGraph, sizes: Dimensions, digests: GraphDigests, plugins: bool
) -> WantedGraph:
    path = None if graph.path is None else bundle.manifest.paths[graph.path]
    inputs = tuple(_tensor(value) for value in graph.model.graph.inputs)
    sha256 = digests.digest(graph.name)  # of the operators, whatever their plugins look like
    return WantedGraph(
        sha256=sha256,
        inputs=inputs,
        outputs=tuple(_tensor(value) for value in graph.model.graph.outputs),
        profiles=profiles_of(graph.name, path, inputs, sizes),
        plugins=put_plugins(graph, digests.folder) if plugins else (),
    )


def _tensor(value: ir.Value) -> TensorInfo:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    dims = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return TensorInfo(value.name, _DTYPES.get(value.dtype) or value.dtype.name.lower(), tuple(dims))


def _candidates(asked: int | None, vocab_size: int) -> int:
    if asked is None:
        return min(_CANDIDATES, vocab_size)
    if not 1 <= asked <= vocab_size:
        raise ExportError(
            f"--candidates {asked} is not within 1 and the vocabulary's {vocab_size} tokens"
        )
    return asked


def check_range(bundle: Bundle, options: BuildOptions, progress: Progress) -> str:
    """Refuse a precision that cannot hold a value of the graphs, as they run on sample inputs.

    Returns:
        `passed`, `skipped` where it was turned off, or `not needed` where the precision has the
        range of fp32 or is chosen by the range.

    Raises:
        ExportError: A value is too large; the message names the tensor.
    """
    if not options.gate:
        return "skipped"
    from drl.export.tensorrt.numeric_gate import can_overflow, check_precision

    if not can_overflow(options.precision):
        return "not needed"
    progress.stage(f"checking the range of {options.precision}")
    check_precision(bundle, options.precision)
    return "passed"
