"""A decoder step cut to the sizes that an engine takes.

Nearly every step is one piece. Where rows, sources or new tokens exceed the engine's profiles, the
step is done in several, and nothing of that shows outside.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Array
from drl.runtime.backends.protocol import Ranking, StepInputs, StepOutputs
from drl.runtime.backends.tensorrt.manifest import EngineInfo


@dataclass(frozen=True)
class Piece:
    """Some sources with all of their rows, and some of the new tokens.

    Attributes:
        sources: Which sources.
        rows: Which rows, as many for each source.
        tokens: Which of the T new tokens.
        padded_sources: How many sources the engine runs, those behind included that nobody owns.
    """

    sources: slice
    rows: slice
    tokens: slice
    padded_sources: int

    @property
    def width(self) -> int:
        """Rows per source."""
        return int(self.rows.stop - self.rows.start) // int(self.sources.stop - self.sources.start)

    @property
    def padded_rows(self) -> int:
        """How many rows the engine runs, B."""
        return self.padded_sources * self.width

    @property
    def new(self) -> int:
        """How many new tokens, T."""
        return int(self.tokens.stop - self.tokens.start)


@dataclass(frozen=True)
class Most:
    """The largest sizes that a decoder takes.

    Attributes:
        rows, sources: Of the profile that takes so many new tokens.
        tokens: New tokens at a time.
    """

    rows: int
    sources: int
    tokens: int

    @classmethod
    def of(cls, engine: EngineInfo, new: int) -> "Most":
        """The sizes of the profile that steps of `new` tokens run in.

        One token runs in the profile with the fewest, more of them in the one with the most.
        """
        by_tokens = sorted(engine.profiles, key=lambda profile: profile.dims["T"][2])
        dims = by_tokens[0 if new == 1 else -1].dims
        return cls(dims["B"][2], dims["R"][2], dims["T"][2])

    def sources_at_once(self, width: int) -> int:
        """Most sources with `width` rows each; 0 if not even one fits."""
        return min(self.sources, self.rows // width)


def cut(inputs: StepInputs, engine: EngineInfo, padded_sources: int) -> Iterator[Piece]:
    """Cut a step, in the order in which its pieces must run.

    Args:
        inputs: The step.
        engine: The decoder.
        padded_sources: How many sources to run if it is one piece of one token.
    """
    count, new = len(inputs.cross_bias), inputs.tokens.shape[1]
    most = Most.of(engine, new)
    at_once = max(1, most.sources_at_once(inputs.width))
    if count <= at_once and new == 1:
        yield _piece(inputs, 0, count, 0, 1, max(count, padded_sources))
        return
    for first in range(0, count, at_once):
        last = min(first + at_once, count)
        for start in range(0, new, most.tokens):
            yield _piece(inputs, first, last, start, min(start + most.tokens, new), last - first)


def _piece(
    inputs: StepInputs, first: int, last: int, start: int, stop: int, padded_sources: int
) -> Piece:
    width = inputs.width
    rows = slice(first * width, last * width)
    return Piece(slice(first, last), rows, slice(start, stop), padded_sources)


def joined(inputs: StepInputs, parts: Iterable[tuple[Piece, StepOutputs]]) -> StepOutputs:
    """The outputs of a whole step, from those of its pieces, of which each may reuse the last's."""
    kept = [(piece, _copied(outputs)) for piece, outputs in parts]

    def whole(field: Callable[[StepOutputs], Array]) -> Array:
        first = field(kept[0][1])
        result = np.empty((*inputs.tokens.shape, *first.shape[2:]), first.dtype)
        for piece, outputs in kept:
            result[piece.rows, piece.tokens] = field(outputs)
        return result

    top = None
    if inputs.candidates:
        top = Ranking(whole(lambda o: _top(o).values), whole(lambda o: _top(o).ids))
    experts = {
        layer: whole(lambda o, layer=layer: o.experts[layer])  # type: ignore[misc]
        for layer in kept[0][1].experts
    }
    return StepOutputs(whole(lambda o: o.logits), whole(lambda o: o.normalisers), experts, top)


def _copied(outputs: StepOutputs) -> StepOutputs:
    """With logits of its own. All else is a piece's own already."""
    return dataclasses.replace(outputs, logits=outputs.logits.copy())


def _top(outputs: StepOutputs) -> Ranking:
    assert outputs.top is not None
    return outputs.top
