"""The logits processors of a batch, each run once for all rows that share it.

Those that only bar a few tokens can do with the likeliest tokens of each row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from drl.runtime.arrays import Float32, Int32, Int64
from drl.runtime.decoding.history import TokenHistory
from drl.runtime.errors import BackendError, DrlError, RequestError
from drl.runtime.processors import (
    BarringProcessor,
    DecodingState,
    LogitsProcessor,
    OccasionalProcessor,
    apply_processors,
    processor_name,
)
from drl.runtime.request import Request

Failures = dict[int, DrlError]

# Where more tokens than this may be barred, a step takes whole rows.
_MOST_BARRED = 64
_NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows with equal processors, and what stays the same for them from step to step."""

    processors: tuple[LogitsProcessor, ...]
    occasional: tuple[OccasionalProcessor, ...]
    rows: Int64  # in the batch's history
    places: Int64  # in the scores that are processed
    sources: Int64
    source_lengths: Int64
    prompt_lengths: Int64
    max_lengths: Int64

    @property
    def spare(self) -> int | None:
        """See `ProcessorGroups.spare`."""
        bars = [each for each in self.processors if isinstance(each, BarringProcessor)]
        barred = {token for each in bars for token in each.barred}
        understood = len(bars) + len(self.occasional) == len(self.processors)
        return len(barred) if understood and len(barred) <= _MOST_BARRED else None

    def state(self, history: TokenHistory) -> DecodingState:
        tokens, lengths = history.tokens, history.lengths[: history.rows]
        if len(self.rows) < len(tokens):
            tokens, lengths = tokens[self.rows], lengths[self.rows]
        return DecodingState(
            tokens=tokens,
            lengths=lengths,
            prompt_lengths=self.prompt_lengths,
            max_lengths=self.max_lengths,
            sources=self.sources,
            source_lengths=self.source_lengths,
        )


class ProcessorGroups:
    """Runs the processors of a fixed set of rows.

    Args:
        requests: Whose row it is, for each row of the batch.
        rows: The rows to process, ascending; all by default. Row `rows[i]` has its scores at `i`.
    """

    def __init__(self, requests: Sequence[Request], rows: Sequence[int] | None = None) -> None:
        rows = range(len(requests)) if rows is None else rows
        self._requests = [(row, requests[row]) for row in rows]
        members: dict[tuple[LogitsProcessor, ...], list[tuple[int, int]]] = {}
        for place, row in enumerate(rows):
            if requests[row].processors:
                members.setdefault(requests[row].processors, []).append((row, place))
        self._groups = [
            _group(processors, pairs, requests) for processors, pairs in members.items()
        ]

    def __bool__(self) -> bool:
        """Whether any row has a processor."""
        return bool(self._groups)

    @cached_property
    def spare(self) -> int | None:
        """How many of a row's likeliest tokens may be barred in steps where `acts` is false.

        None where processors may do more than that, or bar too many.
        """
        spares = [group.spare for group in self._groups]
        known = [spare for spare in spares if spare is not None]
        return max(known, default=0) if len(known) == len(spares) else None

    def acts(self, history: TokenHistory) -> bool:
        """Whether in this step a processor does more than to bar tokens, if `spare` is a number."""
        return any(
            processor.acts(state)
            for group in self._groups
            if group.occasional
            for state in (group.state(history),)
            for processor in group.occasional
        )

    def barred(self, history: TokenHistory) -> list[frozenset[int]]:
        """The tokens that each row may not take, in steps where `acts` is false.

        Plain numbers and sets: for the few rows of a step they are faster than arrays.
        """
        lengths = history.lengths[: history.rows].tolist()
        found = []
        for row, bars in self._bars:
            length = lengths[row]
            sets = [tokens for first, end, tokens in bars if first <= length < end]
            found.append(sets[0] if len(sets) == 1 else _NOTHING.union(*sets))
        return found

    @cached_property
    def _bars(self) -> list[tuple[int, list[tuple[int, int, frozenset[int]]]]]:
        """Each row, with what is barred in it: from which length, until which, which tokens."""
        found = []
        for row, request in self._requests:
            bars = [each for each in request.processors if isinstance(each, BarringProcessor)]
            prompt = prompt_length(request)
            found.append((row, [(*each.span(prompt), frozenset(each.barred)) for each in bars]))
        return found

    def apply(self, scores: Float32, history: TokenHistory) -> Failures:
        """Process `[rows, V]` scores in place.

        Returns:
            The places of rows whose processors went wrong, with what went wrong.
        """
        failures: Failures = {}
        for group in self._groups:
            whole = len(group.places) == len(scores)
            part = scores if whole else scores[group.places]
            try:
                changed = apply_processors(group.processors, group.state(history), part)
            except RequestError as error:
                failures |= dict.fromkeys(group.places.tolist(), error)
                continue
            if whole:
                if changed is not scores:
                    scores[...] = changed
            else:
                scores[group.places] = changed
        return failures


def _group(
    processors: tuple[LogitsProcessor, ...],
    pairs: list[tuple[int, int]],
    requests: Sequence[Request],
) -> _Group:
    rows = [row for row, _ in pairs]
    sources = [requests[row].tokens for row in rows]
    lengths = np.array([len(source) for source in sources], np.int64)
    padded = np.full((len(rows), lengths.max()), -1, np.int64)
    for place, source in enumerate(sources):
        padded[place, : len(source)] = source
    prompts = np.array([prompt_length(requests[row]) for row in rows], np.int64)
    limits = np.array([requests[row].max_new_tokens for row in rows], np.int64)
    return _Group(
        processors=processors,
        occasional=tuple(each for each in processors if isinstance(each, OccasionalProcessor)),
        rows=np.array(rows, np.int64),
        places=np.array([place for _, place in pairs], np.int64),
        sources=padded,
        source_lengths=lengths,
        prompt_lengths=prompts,
        max_lengths=prompts + limits,
    )


def bar(barred: Sequence[frozenset[int]], tokens: Int64 | Int32, scores: Float32) -> None:
    """Set the `[n, c]` scores of `[n, c]` tokens to -inf where they are barred in their row."""
    for row, those in enumerate(barred):
        if those:
            columns = [column for column, id in enumerate(tokens[row].tolist()) if id in those]
            scores[row, columns] = -np.inf


def prompt_length(request: Request) -> int:
    """How many of a row's tokens are given: the start token and the prefix."""
    return 1 + len(request.prefix)


def unchoosable(request: Request, best: float = -np.inf) -> DrlError:
    """What to say where the best score of a row is NaN, or where nothing is left to choose."""
    if np.isnan(best):
        return BackendError(
            "the model's logits hold NaN; compare the bundle with its checkpoint by exporting it "
            "again without --no-verify"
        )
    names = ", ".join(dict.fromkeys(processor_name(item) for item in request.processors))
    return RequestError(f"no token is left to choose: {names} together bar the whole vocabulary")
