"""Optimisation profiles: the sizes of every input of a lowered graph."""

from collections.abc import Mapping, Sequence

from drl.export.tensorrt.sizes import Dimensions, Range, kept_states
from drl.runtime.backends.tensorrt.manifest import ProfileInfo, Shapes
from drl.runtime.backends.tensorrt.sizes import kept_multiple
from drl.runtime.errors import ExportError
from drl.runtime.manifest import PathInfo, TensorInfo

PREFILL, STEP, ANY = "prefill", "step", "any"


def profiles_of(
    graph: str, path: PathInfo | None, inputs: Sequence[TensorInfo], sizes: Dimensions
) -> tuple[ProfileInfo, ...]:
    """The profiles of a lowered graph, in the order in which the engine has them.

    A decoder has two: `prefill`, whose T varies, and `step`, whose T is 1, so that its kernels are
    chosen for matrices of few rows. The other graphs have one.

    Args:
        graph: The graph's name, as `decoder.full`.
        path: The path that it is for; None for the encoder.
        inputs: Of the graph; dimensions that vary by name.
        sizes: Of every named dimension.

    Raises:
        ExportError: An input has a dimension that `sizes` says nothing of.
    """
    if path is None or not graph.startswith("decoder"):
        dims = {"B": sizes.sources, "S": sizes.source}
        return (_profile(ANY, graph, inputs, dims),)
    kept = _kept(path, inputs, sizes.source)
    dims = {"B": sizes.batch, "R": sizes.sources, "K": kept}
    return (
        _profile(PREFILL, graph, inputs, dims | {"T": sizes.new_tokens}),
        _profile(STEP, graph, inputs, dims | {"T": Range(1, 1, 1)}),
    )


def _kept(path: PathInfo, inputs: Sequence[TensorInfo], source: Range) -> Range:
    """Kept states K of sources of such lengths, the largest as the runtime's cache rounds it up."""
    least, usual, most = (kept_states(path.keep_ratio, length) for length in source)
    for tensor in inputs:
        if tensor.name.startswith("cross_k."):
            _, heads, _, head_dim = tensor.shape
            assert isinstance(heads, int)
            assert isinstance(head_dim, int)
            multiple = kept_multiple(heads, head_dim)
            most = -(-most // multiple) * multiple
            break
    return Range(least, usual, most)


def _profile(
    name: str, graph: str, inputs: Sequence[TensorInfo], dims: Mapping[str, Range]
) -> ProfileInfo:
    used = {dim for tensor in inputs for dim in tensor.shape if not isinstance(dim, int)}
    if unknown := sorted(map(str, used - dims.keys())):
        raise ExportError(
            f"the graph {graph} has a dimension {unknown[0]!r} that no option bounds; "
            "report this with the checkpoint's config.json"
        )
    return ProfileInfo(
        name=name,
        shapes={tensor.name: _shapes(tensor, dims) for tensor in inputs},
        dims={dim: (size.min, size.opt, size.max) for dim, size in dims.items() if dim in used},
    )


def _shapes(tensor: TensorInfo, dims: Mapping[str, Range]) -> Shapes:
    sizes = [
        Range(dim, dim, dim) if isinstance(dim, int) else dims[str(dim)] for dim in tensor.shape
    ]
    return Shapes(
        tuple(size.min for size in sizes),
        tuple(size.opt for size in sizes),
        tuple(size.max for size in sizes),
    )
