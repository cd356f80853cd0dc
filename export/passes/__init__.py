"""Passes: each takes a model to a model that computes the same, and one file holds one pass.

A pass checks what it relies on before it changes anything (`requires`).
"""

from drl.export.passes.function_bodies import AppendFunctionBodies
from drl.export.passes.lower_attention import LowerCachedAttention
from drl.export.passes.split_routed_ffn import SplitRoutedFFN

__all__ = ["AppendFunctionBodies", "LowerCachedAttention", "SplitRoutedFFN"]
