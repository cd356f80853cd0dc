"""The operators of the domain `drl`, one file each: schema, NumPy reference, ONNX body.

`OPERATORS` lists them by name; `functions_for` gives the bodies that a graph needs.
"""

from drl.plugins.ops.cached_attention import CACHED_ATTENTION
from drl.plugins.ops.cross_attention import CROSS_ATTENTION
from drl.plugins.ops.encoder_attention import ENCODER_ATTENTION
from drl.plugins.ops.expert_capacity import EXPERT_CAPACITY
from drl.plugins.ops.expert_route import EXPERT_ROUTE
from drl.plugins.ops.group_route import GROUP_ROUTE
from drl.plugins.ops.head import HEAD
from drl.plugins.ops.library import OPERATORS, functions_for
from drl.plugins.ops.linear import LINEAR
from drl.plugins.ops.operator import DOMAIN, VERSION, Operator
from drl.plugins.ops.path_score import PATH_SCORE
from drl.plugins.ops.projections import PROJECTIONS
from drl.plugins.ops.quantize_states import QUANTIZE_STATES
from drl.plugins.ops.quantized_cached_attention import QUANTIZED_CACHED_ATTENTION
from drl.plugins.ops.quantized_cross_attention import QUANTIZED_CROSS_ATTENTION
from drl.plugins.ops.quantized_gather import QUANTIZED_GATHER
from drl.plugins.ops.quantized_head import QUANTIZED_HEAD
from drl.plugins.ops.quantized_linear import QUANTIZED_LINEAR
from drl.plugins.ops.quantized_projections import QUANTIZED_PROJECTIONS
from drl.plugins.ops.quantized_routed_ffn import QUANTIZED_ROUTED_FFN
from drl.plugins.ops.routed_ffn import ROUTED_FFN
from drl.plugins.ops.routed_ffn_combine import ROUTED_FFN_COMBINE
from drl.plugins.ops.routed_ffn_inner import ROUTED_FFN_INNER
from drl.plugins.ops.schema import Argument, Attribute, Form, OperatorError
from drl.plugins.ops.select_states import SELECT_STATES

__all__ = [
    "CACHED_ATTENTION",
    "CROSS_ATTENTION",
    "DOMAIN",
    "ENCODER_ATTENTION",
    "EXPERT_CAPACITY",
    "EXPERT_ROUTE",
    "GROUP_ROUTE",
    "HEAD",
    "LINEAR",
    "OPERATORS",
    "PATH_SCORE",
    "PROJECTIONS",
    "QUANTIZED_CACHED_ATTENTION",
    "QUANTIZED_CROSS_ATTENTION",
    "QUANTIZED_GATHER",
    "QUANTIZED_HEAD",
    "QUANTIZED_LINEAR",
    "QUANTIZED_PROJECTIONS",
    "QUANTIZED_ROUTED_FFN",
    "QUANTIZE_STATES",
    "ROUTED_FFN",
    "ROUTED_FFN_COMBINE",
    "ROUTED_FFN_INNER",
    "SELECT_STATES",
    "VERSION",
    "Argument",
    "Attribute",
    "Form",
    "Operator",
    "OperatorError",
    "functions_for",
]
