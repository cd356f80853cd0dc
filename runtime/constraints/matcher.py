"""Which tokens may follow a text: llguidance's matcher over the tokens of one vocabulary."""

import re
from typing import Any, Self

import numpy as np

from drl.runtime.constraints.library import import_llguidance
from drl.runtime.constraints.vocabulary import Bits, Vocabulary

_MAX_REASON = 200
_DETAILS = re.compile("<state>|<backtrace>")
# Parts of the library's messages that repeat the source, or point into it.
_LISTING = re.compile(r"\s*(\d+ \|.*|\|.*|[\^~ ]*)")
# The library's own special token, whose name it needs: 0xFF marks a special one.
_END = b"\xff<|end of text|>"
# Reasons to stop that say that the constraint allows nothing more.
_NO_MORE = ("NoExtension", "NoExtensionBias", "EndOfSentence")


class Matcher:
    """A text so far, against a grammar.

    Attributes:
        error: Why the library gave up, as a phrase; empty if it did not.
    """

    def __init__(self, handle: Any, tokens: "MatcherTokens") -> None:
        self._handle = handle
        self._tokens = tokens
        self._mask: Bits | None = None
        self.error = ""

    def fork(self) -> Self:
        """A matcher of the same text that goes on by itself."""
        return type(self)(self._handle.deep_copy(), self._tokens)

    def advance(self, token: int) -> bool:
        """Add a token to the text; False if it is not allowed, and then nothing is added."""
        return self._consume([token])

    def advance_bytes(self, text: bytes) -> bool:
        """Add bytes that need not be tokens; False if they are not all allowed."""
        return self._consume([self._tokens.byte_token + byte for byte in text])

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return not self._handle.is_error() and bool(self._handle.is_accepting())

    def mask(self) -> Bits:
        """The tokens that may follow, as packed bits that must not be changed.

        They include the 256 single bytes, from bit `MatcherTokens.byte_token` on.
        """
        if self._mask is None:
            mask = np.zeros(self._tokens.mask_bytes, np.uint8)
            if not self._handle.is_error():
                self._handle.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if self._handle.is_error():
                mask[:] = 0
                self._note_error()
            self._mask = mask
        return self._mask

    def next_bytes(self) -> bytes:
        """The bytes that may follow, whether or not a token writes them."""
        first = self._tokens.byte_token
        bits = np.unpackbits(self.mask(), bitorder="little")[first : first + 256]
        return bytes(np.flatnonzero(bits).tolist())

    def _consume(self, tokens: list[int]) -> bool:
        self._mask = None
        consumed = self._handle.try_consume_tokens(tokens)
        self._note_error()
        return bool(consumed == len(tokens))

    def _note_error(self) -> None:
        if self._handle.is_error():
            reason = one_line(self._handle.get_error())
            self.error = "" if reason in _NO_MORE else reason


class MatcherTokens:
    """A vocabulary as llguidance knows it.

    After the model's tokens come one for each byte, so that a matcher can be given any text and
    can tell what it waits for, and last the end token that the library asks for. All three kinds
    have bits in a mask.

    Args:
        vocabulary: The texts of the model's tokens.

    Raises:
        BackendError: llguidance is missing.

    Attributes:
        byte_token: The token of byte 0.
        mask_bytes: The length of a mask.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._library = import_llguidance()
        self.byte_token = len(vocabulary.pieces)
        single = [bytes([byte]) if byte < 0xF5 else b"" for byte in range(256)]
        source = _Source([*vocabulary.pieces, *single, _END])
        self.mask_bytes = (len(source.tokens) + 31) // 32 * 4
        self._tokenizer = self._library.LLTokenizer(source)
        source.tokens = []  # the library keeps the source, and needs them no more

    def compile(self, grammar: str) -> Matcher:
        """A matcher of no text yet.

        Args:
            grammar: A list of grammars in llguidance's JSON form.

        Raises:
            ValueError: The grammar is wrong; the message is one line of the library's words.
        """
        try:
            handle = self._library.LLMatcher(self._tokenizer, grammar, log_level=0)
        except ValueError as error:  # half a surrogate pair is no text
            raise ValueError(one_line(str(error))) from None
        if handle.is_error():
            raise ValueError(one_line(handle.get_error()))
        return Matcher(handle, self)

    def escape_regex(self, regex: str) -> str:
        """The regular expression as it stands between the slashes of a Lark terminal."""
        return str(self._library.regex_to_lark(regex, ""))


class _Source:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of a text, for tokens forced by a grammar; forcing is off."""
        return []


def one_line(message: str) -> str:
    """The reason in a message of the library, without the listing of the source under it."""
    message = _DETAILS.split(message)[0]
    lines = [line.strip() for line in message.splitlines() if not _LISTING.fullmatch(line)]
    text = " ".join(" ".join(lines).split()) or "no reason given"
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 3] + "..."
