"""What each token of a vocabulary adds to the text, as bytes."""

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from drl.runtime.errors import RequestError
from drl.runtime.text import REPLACEMENT, Tokenizer, clean_text

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
# Bytes that occur in no UTF-8 text.
_NO_UTF8 = re.compile(rb"[\xc0\xc1\xf5-\xff]")
Bits = NDArray[np.uint8]
"""A set of tokens: bit t of the bytes, lowest first, is token t."""

_TRIALS = 64
_TRIAL_TOKENS = 12


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The texts of the tokens of a model.

    Attributes:
        pieces: For each token id of the model, the bytes that it adds after other text; none for
            ids that write no text (special and unknown tokens, ids that the tokenizer lacks).
        writing: `[ceil(V / 8)]` the tokens that write text.
        opening: `[ceil(V / 8)]` those that write the same, but for a space before it, as the first
            token of a text.
        partial: `[ceil(V / 8)]` those that may end within a character of several bytes.
    """

    pieces: tuple[bytes, ...]
    writing: Bits
    opening: Bits
    partial: Bits

    @classmethod
    def read(cls, tokenizer: Tokenizer, vocab_size: int) -> "Vocabulary":
        """Take the tokens' texts from the tokenizer's decoder.

        Raises:
            RequestError: The decoder joins tokens in a way that gives a token no text of its own.
        """
        fast = tokenizer.fast
        count = min(fast.get_vocab_size(with_added_tokens=True), vocab_size)
        anchor = _find_anchor(fast, count)
        head = fast.decode([anchor])
        unknown = _unknown_token(fast)
        alone = fast.decode_batch([[token] for token in range(count)])
        joined = fast.decode_batch([[anchor, token] for token in range(count)])
        pieces = [b""] * vocab_size
        opens = np.zeros(vocab_size, np.bool_)
        for token, (single, text) in enumerate(zip(alone, joined, strict=True)):
            if token == unknown or not text.startswith(head):
                continue
            added = text[len(head) :]
            pieces[token] = _piece(fast, token, added)
            # A text that is cut within a character is the same for all that is known here.
            opens[token] = single.lstrip(" ") == added.lstrip(" ") or REPLACEMENT in single
        _check(fast, pieces, np.flatnonzero(opens).tolist())
        writing = np.array([bool(piece) for piece in pieces])
        partial = np.array([_is_partial(piece) for piece in pieces])
        return cls(tuple(pieces), *map(_pack, (writing, writing & opens, partial)))


def begun_bytes(text: bytes) -> int:
    """How many bytes at the end begin a character of UTF-8 that is not complete."""
    for count in range(1, min(3, len(text)) + 1):
        byte = text[-count]
        if byte >= 0xC0:  # the first of two, three or four bytes
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return count if count < needed else 0
        if byte < 0x80:
            break
    return 0


def _is_partial(piece: bytes) -> bool:
    if piece.isascii():
        return False
    within = len(piece) < 3 and all(0x80 <= byte < 0xC0 for byte in piece)
    return within or begun_bytes(piece) > 0


def _pack(tokens: NDArray[np.bool_]) -> Bits:
    return np.packbits(tokens, bitorder="little")


def _find_anchor(fast: FastTokenizer, count: int) -> int:
    """A token whose text is a letter or digit, so that nothing of it changes beside another."""
    for token in range(count):
        text = fast.decode([token])
        if len(text) == 1 and text.isascii() and text.isalnum():
            return token
    for token in range(count):
        text = fast.decode([token])
        if text and text.isalnum():
            return token
    raise RequestError(
        "json_schema, regex and grammar need a tokenizer that writes text; this bundle's has no "
        "token of letters or digits"
    )


def _unknown_token(fast: FastTokenizer) -> int | None:
    model = json.loads(fast.to_str())["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    name = model.get("unk_token")
    return None if name is None else fast.token_to_id(name)


def _piece(fast: FastTokenizer, token: int, text: str) -> bytes:
    """The bytes of a token whose decoded text is given: U+FFFD in it stands for bytes."""
    piece = text.encode()
    if REPLACEMENT in text:
        entry = fast.id_to_token(token) or ""
        byte = _BYTE_TOKEN.fullmatch(entry)
        if byte:
            piece = bytes.fromhex(byte.group(1))
        elif all(character in _BYTE_OF for character in entry):
            piece = bytes(_BYTE_OF[character] for character in entry)
        else:
            return b""  # the entry has U+FFFD itself, which clean-up removes
    return b"" if _NO_UTF8.search(piece) else piece


def _byte_characters() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies, to that byte.

    Printable bytes stand for themselves, the others for U+0100 and on. Source: Radford et al.
    2019, "Language Models are Unsupervised Multitask Learners", section 2.2 and its code.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_characters()


def _check(fast: FastTokenizer, pieces: list[bytes], first: list[int]) -> None:
    """Hold the pieces to the decoder on random tokens that are whole characters."""
    whole = [token for token, piece in enumerate(pieces) if piece and _is_text(piece)]
    first = [token for token in first if _is_text(pieces[token])]
    draw = random.Random(0)
    for _ in range(_TRIALS if first else 0):
        tokens = [draw.choice(first), *(draw.choice(whole) for _ in range(_TRIAL_TOKENS))]
        if clean_text(_text(pieces[token] for token in tokens)) != clean_text(fast.decode(tokens)):
            decoder = type(fast.decoder).__name__
            raise RequestError(
                "json_schema, regex and grammar need a tokenizer whose tokens each add their own "
                f"text; the decoder of this bundle's ({decoder}) joins them in another way"
            )


def _text(pieces: Iterable[bytes]) -> str:
    return b"".join(pieces).decode()


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return bool(piece)
