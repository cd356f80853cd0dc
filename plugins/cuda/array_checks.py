"""Checks of the arrays of a call against the schema of its operator."""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.ops import Operator
from drl.plugins.ops.shapes import Dimensions

_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.INT32: "int32", ir.DataType.BOOL: "int32"}


def check_arrays(
    operator: Operator, given: Mapping[str, Any], scales: Mapping[str, Any] | None = None
) -> None:
    """Hold arrays to their operator's schema: ranks, sizes, dtypes.

    Args:
        operator: What the arrays are for.
        given: Arrays by the names of its inputs, None for absent ones. Masks are int32.
        scales: Float32 scales `[E, n]` of int8 weights `[E, m, n]`, by the weights' names.

    Raises:
        CudaKernelError: One does not fit, or comes without the input that it belongs to.
    """
    of_scales = {name: array for name, array in (scales or {}).items() if array is not None}
    arguments = {argument.name: argument for argument in operator.inputs}
    present = {name: array for name, array in given.items() if array is not None}
    states = next(iter(present.values()))
    dimensions = Dimensions({})
    for name, array in present.items():
        argument = arguments[name]
        if argument.beside not in {None, *present}:
            raise CudaKernelError(f"{operator.name}: {name} without {argument.beside}")
        shape = tuple(array.shape)
        fits = len(shape) == len(argument.dims)
        fits = fits and all(map(dimensions.bind, argument.dims, shape))
        if not fits:
            raise CudaKernelError(f"{operator.name}: {argument}, not {list(shape)}")
        expected = str(states.dtype) if argument.dtype is None else _NAMES[argument.dtype]
        if name in of_scales:
            expected = "int8"
        if str(array.dtype) != expected:
            raise CudaKernelError(f"{operator.name}: {name} must be {expected}, not {array.dtype}")
    for name, scale in of_scales.items():
        if name not in present:
            raise CudaKernelError(f"{operator.name}: a scale of {name}, which is not given")
        weight = present[name].shape
        if tuple(scale.shape) != (weight[0], weight[2]) or str(scale.dtype) != "float32":
            raise CudaKernelError(
                f"{operator.name}: the scale of {name} must be float32 {[weight[0], weight[2]]}, "
                f"not {scale.dtype} {list(scale.shape)}"
            )
