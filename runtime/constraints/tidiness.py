"""Texts that the clean-up of results leaves as they are.

A constraint speaks of the text that the caller gets, and that text is cleaned up. So what is
generated under a constraint is held to texts that clean-up does not change but for white space at
the ends: no characters that are no text, and no white space but one space, one line break or a
blank line between words.
"""

from drl.runtime.constraints.grammars import lark_grammars
from drl.runtime.constraints.matcher import Matcher, MatcherTokens
from drl.runtime.constraints.vocabulary import Bits, begun_bytes
from drl.runtime.text import ILLEGAL, SPACE

_MAX_MASKS = 128


def _escape(ranges: str) -> str:
    """Ranges of characters as within the brackets of a class of Rust's regular expressions."""
    # Rust's characters do not include surrogates.
    characters = ranges.replace("\ud800-\udfff", "")
    return "".join(c if c == "-" else f"\\x{{{ord(c):X}}}" for c in characters)


_WORD = f"[^{_escape(SPACE)}{_escape(ILLEGAL)}]+"
_GAP = r"(?: |\n\n?)"
CLEAN = f"(?:{_WORD}(?:{_GAP}{_WORD})*)?"
"""A regular expression for the texts that clean-up leaves as they are."""


class Tidiness:
    """Which tokens keep a text tidy. White space may stand at its ends, where it is trimmed.

    The text so far is told by a short one that may go on in the same ways, its `ending`.
    """

    def __init__(self, tokens: MatcherTokens) -> None:
        text = f"(?: ?{_WORD}(?:{_GAP}{_WORD})*)?{_GAP}?"
        self._root: Matcher = tokens.compile(lark_grammars(f"start: TEXT\nTEXT: /{text}/"))
        self._masks: dict[bytes, Bits] = {}

    def mask(self, ending: bytes) -> Bits:
        """The tokens that may follow a text with this ending, as packed bits."""
        mask = self._masks.get(ending)
        if mask is None:
            matcher = self._root.fork()
            matcher.advance_bytes(ending)
            mask = matcher.mask()
            if len(self._masks) >= _MAX_MASKS:
                self._masks.clear()
            self._masks[ending] = mask
        return mask

    @staticmethod
    def follow(ending: bytes, piece: bytes) -> bytes:
        """The ending of a text with a piece more: a word if there is any, white space, and the
        bytes of a character that is not yet complete.
        """
        text = ending + piece
        whole = len(text) - begun_bytes(text)
        words = text[:whole].rstrip(b" \n")
        return (b"x" if words else b"") + text[len(words) :]
