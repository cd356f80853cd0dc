"""Token ids to text while they arrive: whole characters, stop strings withheld, cleaned up."""

import copy
from collections.abc import Sequence
from typing import Self

from drl.runtime.text import REPLACEMENT, Cleaner, Tokenizer, remove_illegal

# A character has at most four bytes, so more undecodable tokens than this are no character in the
# making; without a bound a model that writes broken bytes would cost quadratic time.
_MAX_PENDING_TOKENS = 32


class TokenDecoder:
    """Raw text of a growing list of tokens, a character at the earliest when all its bytes came.

    Decoding each token alone would lose what depends on its neighbours (bytes of one character,
    the space between words), and decoding all of them at every step costs quadratic time. So a
    window is decoded twice, without and with the newest tokens, and the difference is new.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._read = 0  # how many tokens of the window have given their text
        self._read_text = ""

    def fork(self) -> Self:
        """A decoder that goes on from here by itself."""
        twin = copy.copy(self)
        twin._window = list(self._window)
        return twin

    def push(self, token: int) -> str:
        """Add a token; return the text that it completes, which may be empty."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        pending = len(self._window) - self._read
        if text.endswith(REPLACEMENT) and pending <= _MAX_PENDING_TOKENS:
            return ""
        if len(text) <= len(self._read_text) and pending <= _MAX_PENDING_TOKENS:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """Return what is left, with U+FFFD for bytes that never became a character."""
        return self._advance(self._tokenizer.decode(self._window))

    def _advance(self, text: str) -> str:
        new = text[len(self._read_text) :]
        self._window = self._window[self._read :]
        self._read = len(self._window)
        self._read_text = self._tokenizer.decode(self._window)
        return new


class Detokenizer:
    """Text of one generated sequence as it grows.

    The pieces that `push` and `finish` return, joined, are exactly the cleaned text of the
    sequence up to its first stop string. No piece holds part of a character or of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self._decoder = TokenDecoder(tokenizer)
        self._cleaner = Cleaner()
        self._stop_strings = tuple(stop_strings)
        self._raw = ""  # decoded, not yet released: it may be the beginning of a stop string
        self._given = 0  # how much of that was not generated
        self.stopped = False
        """Whether a stop string came; what is pushed after it is ignored."""

    def fork(self) -> Self:
        """A detokenizer that goes on from here by itself, as beams do that share a beginning."""
        twin = copy.copy(self)
        twin._decoder = self._decoder.fork()
        twin._cleaner = copy.copy(self._cleaner)
        return twin

    def give(self, token: int) -> str:
        """As `push`, for a token of a prefix: a stop string has to end behind it to count."""
        self._raw += remove_illegal(self._decoder.push(token))
        self._given = len(self._raw)
        return self._settle(self._given - self._held_back())

    def push(self, token: int) -> str:
        """Add a token; return the clean text that is settled by it."""
        return "" if self.stopped else self._release(self._decoder.push(token), final=False)

    def finish(self) -> str:
        """Return the clean text held back so far; the sequence has no more tokens."""
        return "" if self.stopped else self._release(self._decoder.finish(), final=True)

    def _release(self, new: str, final: bool) -> str:
        if not new and not final:
            return ""
        # Stop strings are looked for in what the reader will see, but for the white space.
        self._raw += remove_illegal(new)
        found = [at for stop in self._stop_strings if (at := self._find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._settle(min(found))
        return self._settle(len(self._raw) - (0 if final else self._held_back()))

    def _find(self, stop: str) -> int:
        """Where a stop string begins that ends in what was generated; -1 if there is none."""
        return self._raw.find(stop, max(0, self._given - len(stop) + 1))

    def _settle(self, length: int) -> str:
        """Release the beginning of the raw text, cleaned."""
        released, self._raw = self._raw[:length], self._raw[length:]
        self._given = max(0, self._given - length)
        return self._cleaner.feed(released)

    def _held_back(self) -> int:
        """Length of the longest end of the raw text that begins a stop string."""
        longest = max((len(stop) for stop in self._stop_strings), default=1) - 1
        for length in range(min(longest, len(self._raw)), 0, -1):
            end = self._raw[-length:]
            if any(stop.startswith(end) for stop in self._stop_strings):
                return length
        return 0


def decode_text(
    tokenizer: Tokenizer, tokens: Sequence[int], stop_strings: Sequence[str] = ()
) -> str:
    """The clean text of a finished sequence: what a `Detokenizer` fed with it would return."""
    detokenizer = Detokenizer(tokenizer, stop_strings)
    pieces = [detokenizer.push(token) for token in tokens]
    return "".join([*pieces, detokenizer.finish()])
