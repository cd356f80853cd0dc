"""The logits processors of a batch, each run once for all rows that share it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.decoding.history import TokenHistory
from drl.runtime.errors import BackendError, DrlError, RequestError
from drl.runtime.processors import (
    DecodingState,
    LogitsProcessor,
    apply_processors,
    processor_name,
)
from drl.runtime.request import Request

Failures = dict[int, DrlError]


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows with equal processors, and what stays the same for them from step to step."""

    processors: tuple[LogitsProcessor, ...]
    rows: Int64  # in the batch's history
    places: Int64  # in the scores that are processed
    sources: Int64
    source_lengths: Int64
    prompt_lengths: Int64
    max_lengths: Int64

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
        members: dict[tuple[LogitsProcessor, ...], list[tuple[int, int]]] = {}
        for place, row in enumerate(range(len(requests)) if rows is None else rows):
            if requests[row].processors:
                members.setdefault(requests[row].processors, []).append((row, place))
        self._groups = [
            _group(processors, pairs, requests) for processors, pairs in members.items()
        ]

    def __bool__(self) -> bool:
        """Whether any row has a processor."""
        return bool(self._groups)

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
    prompts = np.array([1 + len(requests[row].prefix) for row in rows], np.int64)
    limits = np.array([requests[row].max_new_tokens for row in rows], np.int64)
    return _Group(
        processors=processors,
        rows=np.array(rows, np.int64),
        places=np.array([place for _, place in pairs], np.int64),
        sources=padded,
        source_lengths=lengths,
        prompt_lengths=prompts,
        max_lengths=prompts + limits,
    )


def unchoosable(request: Request, best: float = -np.inf) -> DrlError:
    """What to say where the best score of a row is NaN, or where nothing is left to choose."""
    if np.isnan(best):
        return BackendError(
            "the model's logits hold NaN; compare the bundle with its checkpoint by exporting it "
            "again without --no-verify"
        )
    names = ", ".join(dict.fromkeys(processor_name(item) for item in request.processors))
    return RequestError(f"no token is left to choose: {names} together bar the whole vocabulary")
