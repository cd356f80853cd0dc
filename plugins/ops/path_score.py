"""PathScore: how salient each source token is, and which decoding path suits the source."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.numerics import gelu, masked_softmax
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument, Attribute

_LOWEST = float(np.finfo(np.float32).min)


def reference(
    encoder_states: NDArray[Any],
    source_mask: NDArray[np.bool_],
    group_log_probs: NDArray[np.float32],
    budget: NDArray[np.float32],
    saliency_weight: NDArray[np.float32],
    saliency_bias: NDArray[np.float32],
    hidden_weight: NDArray[np.float32],
    hidden_bias: NDArray[np.float32],
    output_weight: NDArray[np.float32],
    output_bias: NDArray[np.float32],
    query: NDArray[np.float32] | None = None,
    *,
    pooling: str,
    max_source_length: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score the paths from the pooled source and the model state, in fp32 (GELU in double).

    The model state is the length of the source (on a log scale, 1 at `max_source_length`), the
    budget and the mean group probabilities of the source. It holds nothing of other rows.

    Args:
        encoder_states: `[B, S, d]`.
        source_mask: `[B, S]`, False at padding; at least one True in every row.
        group_log_probs: `[B, S, G]`.
        budget: `[B]`, in 0 to 1.
        saliency_weight: `[d]`.
        saliency_bias: `[]`.
        hidden_weight: `[d+2+G, r]`.
        hidden_bias: `[r]`.
        output_weight: `[r, P]`.
        output_bias: `[P]`.
        query: `[d]`, only with attention pooling.
        pooling: Weights of the pooled source: softmax of the "saliency", or of "attention" to
            `query`, scaled by `d ** -0.5`.
        max_source_length: Longest source that the model takes.

    Returns:
        Saliency `[B, S]` (0 at padding) and path logits `[B, P]`.
    """
    states = encoder_states.astype(np.float32)
    saliency = states @ saliency_weight + saliency_bias
    scores = saliency if query is None else states @ query / np.float32(math.sqrt(len(query)))
    weights = masked_softmax(scores, source_mask)
    pooled = (weights[..., None] * states).sum(axis=1)

    lengths = source_mask.sum(axis=1, keepdims=True).astype(np.float32)
    relative = np.log1p(lengths) / np.float32(math.log1p(max_source_length))
    probabilities = np.where(source_mask[..., None], np.exp(group_log_probs), np.float32(0))
    usage = probabilities.sum(axis=1) / lengths
    features = np.concatenate([pooled, relative, budget[:, None], usage], axis=1)

    hidden = features @ hidden_weight + hidden_bias
    activated = gelu(hidden)
    logits = activated @ output_weight + output_bias
    return np.where(source_mask, saliency, np.float32(0)), logits


def body(
    op: onnxscript.OpBuilder,
    encoder_states: ir.Value,
    source_mask: ir.Value,
    group_log_probs: ir.Value,
    budget: ir.Value,
    saliency_weight: ir.Value,
    saliency_bias: ir.Value,
    hidden_weight: ir.Value,
    hidden_bias: ir.Value,
    output_weight: ir.Value,
    output_bias: ir.Value,
    query: ir.Value | None = None,
    *,
    pooling: str,
    max_source_length: ir.Value,
) -> Any:
    """Trace the reference; pooling is one batched product of weights and states."""
    states = op.Cast(encoder_states, to=ir.DataType.FLOAT)
    saliency = op.Add(op.MatMul(states, saliency_weight), saliency_bias)
    if pooling == "saliency":
        scores = saliency
    else:
        width = op.Cast(op.Shape(query), to=ir.DataType.FLOAT)
        scores = op.Div(op.MatMul(states, query), op.Sqrt(width))
    weights = op.Softmax(op.Where(source_mask, scores, _LOWEST), axis=1)
    pooled = op.Squeeze(op.MatMul(op.Unsqueeze(weights, [1]), states), [1])

    real = op.Cast(source_mask, to=ir.DataType.FLOAT)
    lengths = op.ReduceSum(real, [1], keepdims=1)
    longest = op.Cast(max_source_length, to=ir.DataType.FLOAT)
    relative = op.Div(op.Log(op.Add(lengths, 1.0)), op.Log(op.Add(longest, 1.0)))
    probabilities = op.Where(op.Unsqueeze(source_mask, [2]), op.Exp(group_log_probs), 0.0)
    usage = op.Div(op.ReduceSum(probabilities, [1], keepdims=0), lengths)
    features = op.Concat(pooled, relative, op.Unsqueeze(budget, [1]), usage, axis=1)

    hidden = op.Gelu(op.Add(op.MatMul(features, hidden_weight), hidden_bias))
    logits = op.Add(op.MatMul(hidden, output_weight), output_bias)
    return op.Where(source_mask, saliency, 0.0), logits


PATH_SCORE = Operator(
    name="PathScore",
    inputs=(
        Argument("encoder_states", None, ("B", "S", "d")),
        Argument("source_mask", ir.DataType.BOOL, ("B", "S")),
        Argument("group_log_probs", ir.DataType.FLOAT, ("B", "S", "G")),
        Argument("budget", ir.DataType.FLOAT, ("B",)),
        Argument("saliency_weight", ir.DataType.FLOAT, ("d",)),
        Argument("saliency_bias", ir.DataType.FLOAT, ()),
        Argument("hidden_weight", ir.DataType.FLOAT, ("d+2+G", "r")),
        Argument("hidden_bias", ir.DataType.FLOAT, ("r",)),
        Argument("output_weight", ir.DataType.FLOAT, ("r", "P")),
        Argument("output_bias", ir.DataType.FLOAT, ("P",)),
        Argument("query", ir.DataType.FLOAT, ("d",), optional=True),
    ),
    outputs=(
        Argument("saliency", ir.DataType.FLOAT, ("B", "S")),
        Argument("path_logits", ir.DataType.FLOAT, ("B", "P")),
    ),
    attributes=(
        Attribute("pooling", str, choices={"saliency": (), "attention": ("query",)}),
        Attribute("max_source_length", int),
    ),
    reference=reference,
    body=body,
)
