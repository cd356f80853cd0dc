"""Between text and token ids: the bundle's tokenizer, and the clean-up of what a model wrote.

Clean-up removes what is no text (control characters, surrogates, noncharacters, byte-order marks
and the replacement character that stands for bytes that are no UTF-8), makes a run of white space
one space, one line break or, where the run held several, one blank line, and trims both ends.
"""

import re
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer as FastTokenizer

from drl.runtime.errors import BundleError, RequestError

REPLACEMENT = "\ufffd"

# Every character with Unicode's White_Space property. Python's own notion of white space also takes
# U+001C to U+001F, which are control characters.
SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_BREAK = re.compile("\r\n|[\n\v\f\r\x85\u2028\u2029]")
_SPACES = re.compile(f"[{SPACE}]+")
# The last two code points of each of the 17 planes, and a block of 32, are no characters.
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    chr((plane << 16) + last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)
ILLEGAL = f"\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff{REPLACEMENT}{_NONCHARACTERS}"
"""Ranges of the characters that clean-up removes, as within the brackets of a regex's class."""
_ILLEGAL = re.compile(f"[{ILLEGAL}]+")


def remove_illegal(text: str) -> str:
    """The text without the characters that are no text."""
    return _ILLEGAL.sub("", text)


def _tidy_run(run: re.Match[str]) -> str:
    if run.group() == " ":
        return " "
    breaks = len(_BREAK.findall(run.group()))
    return " " if breaks == 0 else "\n" if breaks == 1 else "\n\n"


class Cleaner:
    """The clean-up of a text that arrives in parts.

    The parts that `feed` returns, joined, are the same whatever the boundaries of the parts fed:
    white space is held back until the character after it is known.
    """

    def __init__(self) -> None:
        self._held = ""
        self._started = False

    def feed(self, part: str) -> str:
        """Take more raw text; return the clean text that is settled by it."""
        text = self._held + remove_illegal(part)
        body = text.rstrip(SPACE)
        if not body:
            self._held = text if self._started else ""
            return ""
        self._held = text[len(body) :]
        clean = _SPACES.sub(_tidy_run, body)
        if not self._started:
            self._started = True
            clean = clean.lstrip(" \n")
        return clean


def clean_text(text: str) -> str:
    """Clean a whole text. Cleaning a clean text changes nothing."""
    return Cleaner().feed(text)


class Tokenizer:
    """A bundle's `tokenizer.json`, which both encodes prompts and decodes output."""

    def __init__(self, fast: FastTokenizer) -> None:
        # Padding and truncation belong to training; here they would change prompts unseen.
        fast.no_padding()
        fast.no_truncation()
        self._fast = fast

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `tokenizer.json`. Raises `BundleError` if it is none."""
        try:
            return cls(FastTokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for whatever is wrong
            raise BundleError(f"{path} is no tokenizer: {error}; run `drl-export` again") from error

    @property
    def fast(self) -> FastTokenizer:
        """The tokenizer of the library, for what needs its vocabulary and decoder themselves."""
        return self._fast

    @property
    def vocab_size(self) -> int:
        """The number of token ids, added tokens included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary entry, or None if there is no such entry."""
        return self._fast.token_to_id(token)

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, by default with the special tokens that the tokenizer adds.

        Raises:
            RequestError: The text holds half a surrogate pair, which is no Unicode text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text is not valid Unicode at character {error.start}; "
                "decode its bytes with the right encoding"
            ) from None
        return self._fast.encode(text, add_special_tokens=special_tokens).ids

    def decode(self, tokens: list[int]) -> str:
        """The raw text of token ids, without special tokens and not cleaned up."""
        return self._fast.decode(tokens, skip_special_tokens=True)

    def token(self, token: int) -> str | None:
        """The vocabulary entry of a token id, or None for an id without one."""
        return self._fast.id_to_token(token)
