"""Processors that users bring: compared by identity, and their results checked."""

import numpy as np

from drl.runtime.arrays import Array, Float32
from drl.runtime.errors import RequestError, shorten
from drl.runtime.processors.protocol import DecodingState, LogitsProcessor


class ForeignProcessor:
    """Runs a processor that is not of this package, and checks what it returns.

    Two are equal only if they run the same object: objects with equal attributes may still differ,
    and those that define equality often cannot be hashed.
    """

    def __init__(self, processor: LogitsProcessor) -> None:
        self.processor = processor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForeignProcessor) and other.processor is self.processor

    def __hash__(self) -> int:
        return id(self.processor)

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`.

        Raises:
            RequestError: The processor failed, or returned something other than `[R, V]` float32
                scores without NaN. The message names its class.
        """
        shape = scores.shape
        try:
            found: object = self.processor(state, scores)
        except RequestError:
            raise
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            raise RequestError(f"processor {self._name} failed with {words}") from error
        if not isinstance(found, np.ndarray):
            raise RequestError(
                f"processor {self._name} returned {shorten(found)}; return the [R, V] scores, "
                "a NumPy array of float32"
            )
        if problem := _problem(found, shape):
            raise RequestError(f"processor {self._name} returned {problem}")
        # Later processors write in place.
        usable = found.flags.writeable and found.flags.c_contiguous
        return found if usable else np.array(found, np.float32, order="C")

    @property
    def _name(self) -> str:
        return processor_name(self.processor)


def processor_name(processor: LogitsProcessor) -> str:
    """What messages call a processor: its class, or a function's own name."""
    if isinstance(processor, ForeignProcessor):
        processor = processor.processor
    return str(getattr(processor, "__name__", type(processor).__name__))


def _problem(found: Array, shape: tuple[int, ...]) -> str:
    """What is wrong with a processor's result, or nothing."""
    if found.shape != shape:
        return f"scores of shape {list(found.shape)}; they must keep their shape {list(shape)}"
    if found.dtype != np.float32:
        return f"{found.dtype} scores; return float32, such as scores.astype(np.float32)"
    if found.size and np.isnan(found.max()):
        return "NaN; return a number for every token, -inf for one that must not be chosen"
    return ""
