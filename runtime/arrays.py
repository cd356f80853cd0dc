"""Names for the array types that the runtime passes around."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


class BackendArray(Protocol):
    """An array in a backend's memory: NumPy's, or one of a library for a device such as CuPy.

    It can be cut and written to like NumPy's. The types keep it out of NumPy's own functions, which
    would read a device's memory through the host or fail; `ArrayLibrary.to_host` copies it.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its elements' type."""

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: Any, /) -> Any: ...

    def __setitem__(self, place: Any, value: Any, /) -> None: ...
