"""Passes: each takes a model to a model that computes the same, and one file holds one pass.

A pass checks what it relies on before it changes anything (`requires`).
"""

from drl.export.passes.decompose_attention import DecomposeAttention
from drl.export.passes.expand_cached_attention import ExpandCachedAttention
from drl.export.passes.expand_cross_attention import ExpandCrossAttention
from drl.export.passes.expand_expert_capacity import ExpandExpertCapacity
from drl.export.passes.expand_routed_ffn import ExpandRoutedFFN
from drl.export.passes.expand_select_states import ExpandSelectStates
from drl.export.passes.force_routes import ForceRoutes
from drl.export.passes.function_bodies import AppendFunctionBodies
from drl.export.passes.inline_bodies import InlineBodies
from drl.export.passes.lower_attention import LowerCachedAttention
from drl.export.passes.quantize_linears import QuantizeLinears
from drl.export.passes.rank_logits import RankLogits
from drl.export.passes.specialise_path import SpecialisePath
from drl.export.passes.split_routed_ffn import SplitRoutedFFN
from drl.export.passes.static_cache import StaticCache
from drl.export.passes.tap_layers import TapLayers
from drl.export.passes.typed_precision import TypedPrecision

__all__ = [
    "AppendFunctionBodies",
    "DecomposeAttention",
    "ExpandCachedAttention",
    "ExpandCrossAttention",
    "ExpandExpertCapacity",
    "ExpandRoutedFFN",
    "ExpandSelectStates",
    "ForceRoutes",
    "InlineBodies",
    "LowerCachedAttention",
    "QuantizeLinears",
    "RankLogits",
    "SpecialisePath",
    "SplitRoutedFFN",
    "StaticCache",
    "TapLayers",
    "TypedPrecision",
]
