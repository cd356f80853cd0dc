"""How far the text of one hypothesis has come within a constraint."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from drl.runtime.constraints.matcher import Matcher
from drl.runtime.constraints.tidiness import Tidiness
from drl.runtime.constraints.vocabulary import Bits, Vocabulary, begun_bytes
from drl.runtime.errors import RequestError

# Where more tokens may end within a character, its first byte leaves most characters open, and
# looking ahead would only cost time.
_MAX_AHEAD = 16


@dataclass(frozen=True, eq=False)
class Constraint:
    """A compiled option.

    Attributes:
        option: Its name.
        vocabulary: The texts of the model's tokens.
        tidiness: What bars untidy texts; None if the constraint itself has none.
    """

    option: str
    vocabulary: Vocabulary
    tidiness: Tidiness | None


@dataclass(frozen=True, eq=False)
class Progress:
    """A text so far. It never changes, so any number of hypotheses may go on from it.

    Attributes:
        constraint: What the text is held to.
        matcher: The text within the constraint's grammar.
        ending: The text as `Tidiness` tells it; empty as long as nothing is written.
    """

    constraint: Constraint
    matcher: Matcher
    ending: bytes = b""

    def after(self, token: int) -> "Progress | None":
        """The progress after a token of the model, or None if it is not allowed.

        Raises:
            RequestError: The constraint is too complex for the library.
        """
        if not self.constraint.vocabulary.pieces[token]:
            return None
        if not self.allowed[token // 8] >> token % 8 & 1:
            return None
        following = self._follow(token)
        if following.matcher.error:
            raise too_complex(self.constraint.option, following.matcher.error)
        return following

    @cached_property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return self.matcher.complete

    @cached_property
    def untidy(self) -> Bits:
        """Tokens that the constraint allows, whatever the clean-up makes of them; packed bits."""
        vocabulary = self.constraint.vocabulary
        mask = self.matcher.mask()
        known = vocabulary.writing if self.ending else vocabulary.opening
        return mask[: known.size] & known

    @cached_property
    def allowed(self) -> Bits:
        """`[ceil(V / 8)]` tokens that may follow; packed bits, lowest first."""
        tidiness = self.constraint.tidiness
        if tidiness is None:
            return self.untidy
        mask = self.untidy & tidiness.mask(self.ending)[: self.untidy.size]
        # The constraint and tidiness may both allow a first byte, and no character in common.
        begun = _tokens(mask & self.constraint.vocabulary.partial)
        for token in begun if len(begun) <= _MAX_AHEAD else ():
            if not self._follow(token)._completes_character():
                mask[token // 8] &= ~(1 << token % 8) & 0xFF
        return mask

    @property
    def dead(self) -> bool:
        """Whether no token may follow and the text may not end either."""
        return not self.complete and not np.any(self.allowed)

    def _follow(self, token: int) -> "Progress":
        """The progress after a token that the mask of the matcher has."""
        matcher = self.matcher.fork()
        matcher.advance(token)
        piece = self.constraint.vocabulary.pieces[token]
        return Progress(self.constraint, matcher, Tidiness.follow(self.ending, piece))

    def _completes_character(self) -> bool:
        """Whether tokens that may follow complete the character at the end, if one is begun."""
        if not begun_bytes(self.ending):
            return True
        assert self.constraint.tidiness is not None
        mask = self.constraint.tidiness.mask(self.ending)[: self.untidy.size]
        return any(
            self._follow(token)._completes_character() for token in _tokens(self.untidy & mask)
        )


def too_complex(option: str, reason: str) -> RequestError:
    """The error for a constraint that exceeds the library's limits."""
    return RequestError(f"{option} is too complex ({reason}); simplify it")


def _tokens(mask: Bits) -> list[int]:
    places = np.flatnonzero(mask)  # few of many
    rows, bits = np.nonzero(np.unpackbits(mask[places, None], axis=1, bitorder="little"))
    tokens: list[int] = (places[rows] * 8 + bits).tolist()
    return tokens
