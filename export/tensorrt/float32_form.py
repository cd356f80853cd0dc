"""A bundle's graphs in the form of TensorRT, for every path; in float32 still."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
)

from drl.export.passes import (
    DecomposeAttention,
    ExpandCachedAttention,
    ExpandCrossAttention,
    ExpandExpertCapacity,
    ExpandRoutedFFN,
    ExpandSelectStates,
    InlineBodies,
    RankLogits,
    SpecialisePath,
    SplitRoutedFFN,
    StaticCache,
)
from drl.export.passes.expand_select_states import THOUSANDTHS
from drl.runtime.bundle import Bundle
from drl.runtime.errors import ExportError
from drl.runtime.manifest import Manifest, PathInfo

PRECISIONS = ("fp16", "bf16", "fp8")


@dataclass(frozen=True)
class LoweringOptions:
    """What to lower to.

    Attributes:
        precision: `fp16`, `bf16`, or `fp8`: linears in fp8, all else as in fp16, or as in bf16 if
            fp16 cannot hold it.
        capacity: Positions C of the cache, static; None for the most that the model takes.
        candidates: How many of the largest logits are told, c; at most V of them.
        plugins: Whether experts run in the plugin operators, instead of standard ones.

    Raises:
        ExportError: A value is out of range.
    """

    precision: str = "fp16"
    capacity: int | None = None
    candidates: int = 64
    plugins: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be lowered to."""
        if self.precision not in PRECISIONS:
            raise ExportError(
                f"there is no precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}"
            )
        if self.capacity is not None and self.capacity < 1:
            raise ExportError(f"the cache needs a capacity of at least 1, not {self.capacity}")
        if self.candidates < 1:
            raise ExportError(f"at least 1 candidate is ranked, not {self.candidates}")


@dataclass(frozen=True)
class LoweredGraph:
    """A graph in the form of TensorRT.

    Attributes:
        name: `encoder`, `bridge.<path>` or `decoder.<path>`.
        model: The graph.
        path: Index of its path; None for the encoder, which all paths share.
    """

    name: str
    model: ir.Model
    path: int | None


def lower_in_float32(
    bundle: Bundle, options: LoweringOptions, before: Sequence[ir.passes.PassBase] = ()
) -> list[LoweredGraph]:
    """Lower every graph for every path, but for the precision.

    The weights stay in the bundle's file.

    Args:
        bundle: An fp32 bundle.
        options: All but the precision count.
        before: Passes to run over the canonical graphs first.

    Returns:
        The encoder, then bridge and decoder of every path, cheapest first.

    Raises:
        BundleError: The bundle holds no canonical graphs.
    """
    manifest = bundle.manifest
    encoder = _run(_load(bundle, "encoder"), [*before, *_encoder_passes(options), *_TIDY])
    graphs = [LoweredGraph("encoder", encoder, None)]
    for index, path in enumerate(manifest.paths):
        bridge = _run(_load(bundle, "bridge"), [*before, *_bridge_passes(index, path), *_TIDY])
        decoder = _run(
            _load(bundle, "decoder"),
            [*before, *_decoder_passes(manifest, index, options), *_TIDY],
        )
        _count_experts(decoder, path)
        graphs.append(LoweredGraph(f"bridge.{path.name}", bridge, index))
        graphs.append(LoweredGraph(f"decoder.{path.name}", decoder, index))
    return graphs


def _count_experts(decoder: ir.Model, path: PathInfo) -> None:
    """Tell how many experts a token has on this path, which inputs and outputs then know."""
    for value in (*decoder.graph.inputs, *decoder.graph.outputs):
        named = (value.name or "").startswith(("decoder_experts.", "routes."))
        if named and value.shape is not None:
            value.shape = ir.Shape([*value.shape[:2], path.experts_per_token])


def _load(bundle: Bundle, graph: str) -> ir.Model:
    model = ir.load(bundle.canonical_file(graph))
    model.functions.clear()
    return model


def _run(model: ir.Model, passes: Sequence[ir.passes.PassBase]) -> ir.Model:
    return ir.passes.Sequential(*passes)(model).model


_TIDY = (
    IdentityEliminationPass(),
    CommonSubexpressionEliminationPass(),  # layers repeat what they share, such as masks
    RemoveUnusedNodesPass(),
)


def _encoder_passes(options: LoweringOptions) -> list[ir.passes.PassBase]:
    return [
        DecomposeAttention(),
        *_routing(options, gather=False),
        InlineBodies(["PathScore"], "float32"),
    ]


def _bridge_passes(index: int, path: PathInfo) -> list[ir.passes.PassBase]:
    keep = round(path.keep_ratio * THOUSANDTHS)
    return [SpecialisePath(index, path.layers), ExpandSelectStates(keep)]


def _decoder_passes(
    manifest: Manifest, index: int, options: LoweringOptions
) -> list[ir.passes.PassBase]:
    capacity = options.capacity or manifest.limits.max_target_length
    candidates = min(options.candidates, manifest.limits.vocab_size)
    return [
        SpecialisePath(index, manifest.paths[index].layers),
        StaticCache(capacity),
        ExpandCachedAttention(),
        ExpandCrossAttention(),
        DecomposeAttention(),
        *_routing(options, gather=True),
        RankLogits(candidates),
    ]


def _routing(options: LoweringOptions, *, gather: bool) -> list[ir.passes.PassBase]:
    if options.plugins:
        return [ExpandExpertCapacity(), SplitRoutedFFN(), InlineBodies(["GroupRoute"], "float32")]
    return [
        ExpandExpertCapacity(),
        ExpandRoutedFFN(gather=gather),
        InlineBodies(["GroupRoute", "ExpertRoute"], "float32"),
    ]
