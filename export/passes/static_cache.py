"""Give the cache a capacity known when an engine is built, and biases over all of it."""

import re

import numpy as np
import onnx_ir as ir

from drl.export.passes.tracing import constant, expand

_CACHE = re.compile(r"(?:past|present)_[kv]\.\d+")


class StaticCache(ir.passes.InPlacePass):
    """Fix the capacity C of every cache; position biases then span all C slots.

    A bias over the slots in use, `max(lengths) + T`, has a size that depends on data, which
    TensorRT does not take. Slots beyond them are hidden by the attention, whatever their bias is.

    Args:
        capacity: C, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def requires(self, model: ir.Model) -> None:
        """Check that the graph has a cache, and that no node is nested."""
        if not any(_CACHE.fullmatch(value.name or "") for value in model.graph.inputs):
            raise ir.passes.PreconditionError("the graph has no cache (past_k.{i}, past_v.{i})")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set the dimension, and spread what ranges over the slots in use over all slots."""
        graph = model.graph
        modified = False
        for value in (*graph.inputs, *graph.outputs):
            if _CACHE.fullmatch(value.name or "") and value.shape is not None:
                rows, heads, slots, width = value.shape
                value.shape = ir.Shape([rows, heads, self._capacity, width])
                modified |= slots != self._capacity
        for node in _ranges_of_slots(graph):
            expand(node, lambda op: constant(op, np.arange(self._capacity)))
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Check that no bias has a size of its own."""
        for node in model.graph:
            if node.op_type == "CachedAttention" and len(node.inputs) > 6 and node.inputs[6]:
                shape = node.inputs[6].shape
                if _ranges_of_slots(model.graph):
                    raise ir.passes.PostconditionError(f"{node.name}: a bias of shape {shape}")


def _ranges_of_slots(graph: ir.Graph) -> list[ir.Node]:
    """The `Range` nodes that end at max(lengths) + T."""
    lengths = next((value for value in graph.inputs if value.name == "lengths"), None)
    if lengths is None:
        return []
    reached = {node for node in lengths.consumers() if node.op_type == "ReduceMax"}
    waiting = list(reached)
    while waiting:
        for consumer in {use for value in waiting.pop().outputs for use in value.consumers()}:
            if consumer.op_type in ("Cast", "Add", "Squeeze", "Range") and consumer not in reached:
                reached.add(consumer)
                waiting.append(consumer)
    return [node for node in graph if node in reached and node.op_type == "Range"]
