"""Panels: float matrices in the order in which the CPU kernels read them.

A matrix is the `W [N, K]` of `y = x · Wᵀ`; M of them are stacked. Columns (the N outputs) stand in
panels of 64, and in a panel those of one place of the depth (K) lie side by side, so that a kernel
reads memory from one end to the other. What is beyond the last column is 0.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.schema import Argument

PANEL = 64
"""Columns of a panel."""


def panel_argument(matrices: str, columns: str, depth: str) -> Argument:
    """The argument that matrices in panels are given by, of sizes such as M, N and K."""
    return Argument(
        "weight", ir.DataType.FLOAT, (matrices, f"{columns}/{PANEL}", depth, str(PANEL))
    )


def panel_shape(matrices: int, columns: int, depth: int) -> tuple[int, int, int, int]:
    """The shape of matrices of this size in panels: `[M, ⌈N/64⌉, K, 64]`."""
    return matrices, -(-columns // PANEL), depth, PANEL


def pack_panels(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Put matrices `[M, N, K]` in panels `[M, ⌈N/64⌉, K, 64]`."""
    matrices, columns, depth = weights.shape
    shape = panel_shape(matrices, columns, depth)
    padded = np.zeros((matrices, shape[1] * PANEL, depth), np.float32)
    padded[:, :columns] = weights
    by_panel = padded.reshape(matrices, shape[1], PANEL, depth)
    return np.ascontiguousarray(by_panel.swapaxes(2, 3))


def unpack_panels(panels: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Take matrices `[M, N, K]` of N columns out of panels."""
    matrices, _, depth, _ = panels.shape
    by_panel: NDArray[np.float32] = panels.swapaxes(2, 3)
    return by_panel.reshape(matrices, -1, depth)[:, :columns]


def trace_matrix(op: onnxscript.OpBuilder, panels: ir.Value, matrix: int, columns: ir.Value) -> Any:
    """Add the matrix of that number to a graph, as `MatMul` reads it: `[K, N]`."""
    by_depth = op.Transpose(op.Gather(panels, matrix), perm=[1, 0, 2])
    return op.Slice(op.Reshape(by_depth, [0, -1]), [0], op.Reshape(columns, [1]), [1])
