"""Level 1 of the routing as ONNX nodes: two constant tables and one gather."""

from dataclasses import dataclass

import onnx_ir as ir
import torch

from drl.export.checkpoint import Checkpoint
from drl.export.graph.emitter import BOOL, FLOAT, Emitter
from drl.export.model.group_router import GroupChoice, GroupRouter
from drl.plugins.ops import GROUP_ROUTE


@dataclass(frozen=True)
class GroupValues:
    """Level-1 routing of tokens: log P1 fp32 `[B, T, G]`, and allowed groups bool `[B, T, G]`."""

    log_probs: ir.Value
    allowed: ir.Value


def emit_group_router(e: Emitter, tokens: ir.Value, table: str = "embedding") -> GroupValues | None:
    """Emit the `GroupRouter` for `tokens` int64 `[B, T]`, if the model routes at all.

    Its choice depends on the token id alone, so it is folded to tables over the vocabulary,
    computed by the PyTorch module itself from the embedding `table`.
    """
    config = e.config
    if not config.routes_tokens:
        return None
    if config.groups == 1:
        return _single_group(e, tokens)

    def route_vocabulary(checkpoint: Checkpoint) -> GroupChoice:
        router = GroupRouter(config.groups, config.d_model, config.top_groups)
        router.load_state_dict({"prototypes": checkpoint.tensor("group_router.prototypes")})
        with torch.inference_mode():
            choice: GroupChoice = router(checkpoint.tensor(f"{table}.weight"))
        return choice

    shape = (config.vocab_size, config.groups)
    place = "group_router" if table == "embedding" else f"group_router.{table}"
    with e.scope("group_router"):
        log_probs = e.tensor(
            f"{place}.log_probs", FLOAT, shape, lambda c: route_vocabulary(c).log_probs
        )
        allowed = e.tensor(f"{place}.allowed", BOOL, shape, lambda c: route_vocabulary(c).allowed)
        return GroupValues(*GROUP_ROUTE.emit(e.op, tokens, log_probs, allowed))


def _single_group(e: Emitter, tokens: ir.Value) -> GroupValues:
    """Emit the routing to the only group, which has probability 1 and is always allowed."""
    op = e.op
    assert tokens.shape is not None
    dims = ir.Shape([*tokens.shape, 1])
    shape = op.Concat(op.Shape(tokens), [1], axis=0)
    log_probs, allowed = op.ConstantOfShape(shape), op.Expand(True, shape)
    for value, dtype in ((log_probs, FLOAT), (allowed, BOOL)):
        value.type, value.shape = ir.TensorType(dtype), dims
    return GroupValues(log_probs, allowed)
