"""The logits processor that holds the text of one request to its constraint."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.constraints.failures import impossible
from drl.runtime.constraints.progress import Progress
from drl.runtime.constraints.vocabulary import Bits
from drl.runtime.errors import RequestError
from drl.runtime.processors.protocol import BuiltInProcessor, DecodingState

_MINUS_INFINITY = np.float32(-np.inf).view(np.int32)

_Key = tuple[int, bytes]
"""Where the generated tokens of a row begin, and their bytes."""


@dataclass(frozen=True)
class Places:
    """Positions, counted like `DecodingState.lengths`, whose token is given by other options.

    Attributes:
        tokens: Positions of forced tokens.
        last: Whether the last position before the maximal length is one.
    """

    tokens: frozenset[int] = frozenset()
    last: bool = False


class ConstraintProcessor(BuiltInProcessor):
    """Bars the tokens with which a text would leave the constraint.

    Only the generated tokens count, not the start token nor a given prefix. End tokens are allowed
    exactly where the text may end, and never as text. Tokens that write no text (special tokens,
    unknown ones, ids beyond the tokenizer's vocabulary) are barred, and forced ones are passed
    over. Nothing is done at forced positions, nor to hypotheses that have ended; those that broke
    the constraint, as beams do that were chosen although their score is -inf, get -inf throughout.

    The object belongs to one request, and compares by identity: an error concerns no other one.
    It remembers the texts of the latest step, from which those of the next one go on. What it does
    not remember is worked out from the tokens.

    Args:
        start: No text yet, within the constraint.
        ends: The end tokens.
        forced: Positions at which tokens are forced.
        beams: Whether the rows are beams of one search, of which some may come to nothing.
    """

    def __init__(self, start: Progress, ends: Sequence[int], forced: Places, beams: bool) -> None:
        self._start = start
        self._forced = forced
        self._beams = beams
        self._size = len(start.constraint.vocabulary.pieces)
        self._ends = np.array([token for token in ends if token < self._size], np.int64)
        self._texts: dict[_Key, Progress | None] = {}
        self._could_end = False

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`; the scores are changed in place.

        Raises:
            RequestError: A text can neither go on nor end: the constraint needs what the
                vocabulary cannot write, or other options bar it. Of beams, all must be in that
                state, and none have been able to end before. Or a token was chosen that is not
                allowed.
        """
        texts: dict[_Key, Progress | None] = {}
        alive = 0
        stuck: list[RequestError] = []
        for row in range(len(scores)):
            start, length = int(state.prompt_lengths[row]), int(state.lengths[row])
            tokens = state.tokens[row, start:length]
            if tokens.size and tokens[-1] in self._ends:
                continue
            progress = self._progress(start, tokens, texts)
            if self._is_forced(length, int(state.max_lengths[row])):
                continue
            if progress is None:
                self._refuse_outside_beams(tokens)
                scores[row] = -np.inf
                continue
            alive += 1
            if not self._bar(scores[row], progress):
                barred = not progress.dead
                stuck.append(impossible(progress, self._text(tokens), barred))
        self._texts = texts
        if stuck and (not self._beams or (len(stuck) == alive and not self._could_end)):
            raise stuck[0]
        return scores

    def _progress(
        self, start: int, tokens: Int64, texts: dict[_Key, Progress | None]
    ) -> Progress | None:
        """The text of generated tokens, which is added to `texts`; None if it is not allowed."""
        key = (start, tokens.tobytes())
        if key in texts:
            return texts[key]
        progress: Progress | None = self._start
        known = 0
        before = (start, tokens[:-1].tobytes())
        if tokens.size and before in self._texts:
            known, progress = len(tokens) - 1, self._texts[before]
        for place in range(known, len(tokens)):
            if progress is None:
                break
            progress = self._after(progress, int(tokens[place]), start + place)
        texts[key] = progress
        return progress

    def _after(self, progress: Progress, token: int, position: int) -> Progress | None:
        forced = position in self._forced.tokens
        if forced and not progress.constraint.vocabulary.pieces[token]:
            return progress
        following = progress.after(token)
        if forced and following is None:
            option = progress.constraint.option
            raise RequestError(
                f"{option} does not allow the token {token} that is forced at position {position}; "
                f"change forced_bos_token_id or forced_decoder_ids, or the {option}"
            )
        return following

    def _is_forced(self, length: int, most: int) -> bool:
        return length in self._forced.tokens or (self._forced.last and length == most - 1)

    def _bar(self, scores: Float32, progress: Progress) -> bool:
        """Bar what may not follow in `[V]` scores; False if nothing is left."""
        bits = np.unpackbits(progress.allowed, count=self._size, bitorder="little")
        bits[self._ends] = progress.complete
        _keep(scores, bits)
        if scores.max() == -np.inf:
            return False
        self._could_end |= bool(np.any(scores[self._ends] > -np.inf))
        return True

    def _refuse_outside_beams(self, tokens: Int64) -> None:
        if not self._beams:
            option = self._start.constraint.option
            raise RequestError(
                f"{option} does not allow {self._text(tokens[-1:])!r} as it was chosen; processors "
                "must leave the score -inf alone"
            )

    def _text(self, tokens: Int64) -> str:
        pieces = self._start.constraint.vocabulary.pieces
        return b"".join(pieces[token] for token in tokens.tolist()).decode(errors="ignore")


def _keep(scores: Float32, bits: Bits) -> None:
    """Give `[V]` scores -inf where `[V]` bits are 0.

    On the scores' own bits, since that takes the same short time whichever tokens are kept: a copy
    under a mask takes ten times as long where every other token is.
    """
    words = scores.view(np.int32)
    kept = np.negative(bits.view(np.int8)).astype(np.int32)
    words &= kept
    words |= ~kept & _MINUS_INFINITY
