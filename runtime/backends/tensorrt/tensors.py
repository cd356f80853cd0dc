"""Shapes and types of engines' tensors, from the manifest."""

from collections.abc import Iterable, Mapping

import numpy as np

from drl.runtime.manifest import TensorInfo

# NumPy has no bfloat16. Nothing here computes with it, so its bits travel as whole numbers.
_DTYPES: Mapping[str, str] = {"bfloat16": "uint16"}


def numpy_dtype(tensor: TensorInfo) -> "np.dtype[np.generic]":
    """The type of a tensor's elements, as NumPy and CuPy store them."""
    return np.dtype(_DTYPES.get(tensor.dtype, tensor.dtype))


def shape_of(tensor: TensorInfo, dims: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor where its named dimensions have these sizes."""
    return tuple(size if isinstance(size, int) else dims[str(size)] for size in tensor.shape)


def by_name(tensors: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    """Tensors by their names."""
    return {tensor.name: tensor for tensor in tensors}
