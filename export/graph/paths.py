"""The path as ONNX nodes: a graph runs the layers of the path it is told."""

from collections.abc import Sequence

import onnx_ir as ir

from drl.export.graph.emitter import BOOL, INT64, Emitter


class PathSwitch:
    """What the input `path`, int64 `[]`, turns on and off; with one path there is no such input."""

    def __init__(self, e: Emitter) -> None:
        self._e = e
        self._paths = e.config.paths
        self._index = e.input("path", INT64, []) if len(self._paths) > 1 else None

    def number(self, per_path: Sequence[int]) -> ir.Value:
        """Return the path's entry of `per_path`, int64 `[1]`."""
        op = self._e.op
        if self._index is None or len(set(per_path)) == 1:
            return op.Constant(value_ints=[per_path[0]])
        return op.Gather(list(per_path), op.Unsqueeze(self._index, [0]))

    def runs(self, layer: int) -> ir.Value | None:
        """Return whether `layer` is on the path, bool `[]`; None if it is on every path."""
        if layer not in self._e.config.skippable_layers:
            return None
        on = self._e.op.Gather([int(layer in path.layers) for path in self._paths], self._index)
        condition = self._e.op.Cast(on, to=BOOL)
        condition.type = ir.TensorType(BOOL)
        return condition
