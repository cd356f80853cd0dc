"""A mask has exactly the tokens that keep the text the beginning of one that meets the constraint.

The reference knows all texts of the constraint, and compares them as strings.
"""

import re
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from drl.runtime.constraints import ConstraintCompiler
from drl.runtime.constraints.tidiness import CLEAN, Tidiness
from drl.runtime.generation import GenerationConfig
from drl.runtime.text import Tokenizer, clean_text
from tests.runtime.constraints.vocabularies import (
    EOS,
    PADDING_IDS,
    SPECIAL,
    allowed,
    compiler_of,
    processor,
    size_of,
    state,
    tokenizer_of,
)

PIECES = ["▁", "a", "b", "c", "▁a", "ab", "ba", "▁b", "abc", "▁▁", "a▁", "\n", "b\n", "\ta", "é"]
LONGEST = 5


def small() -> Tokenizer:
    entries = [(piece, -1.0) for piece in [*SPECIAL, *PIECES]]
    tokenizer = FastTokenizer(models.Unigram(entries, 2))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    return Tokenizer(tokenizer)


TOKENIZER = small()
SIZE = TOKENIZER.vocab_size + PADDING_IDS
COMPILER = ConstraintCompiler(TOKENIZER, SIZE, EOS)
TEXT = {token: piece.replace("▁", " ") for token, piece in enumerate(PIECES, len(SPECIAL))}
ALL = ["".join(parts) for n in range(LONGEST + 1) for parts in product("abc \n\té", repeat=n)]


def check(config: GenerationConfig, sentences: list[str]) -> None:
    """Compare masks after every text that the constraint allows; all of its texts are given."""
    made = COMPILER.processor(config)
    assert made is not None
    # One space before a text is no part of it.
    whole = {space + text for text in sentences for space in ("", " ")}
    whole -= {" "} if "" not in sentences else set()
    beginnings = {text[:end] for text in whole for end in range(len(text) + 1)}
    found = 0
    open_texts: list[tuple[str, list[int]]] = [("", [])]
    seen = {""}
    while open_texts:
        text, tokens = open_texts.pop()
        expected = [
            token
            for token, piece in TEXT.items()
            # The decoder drops every space marker of the first token.
            if text + piece in beginnings and (text or " " not in piece.lstrip())
        ]
        if text in whole:
            expected.insert(0, EOS)
        assert allowed(made, SIZE, tokens) == expected, repr(text)
        for token in expected:
            following = text + TEXT.get(token, "")
            found += token == EOS
            if token != EOS and following not in seen:
                seen.add(following)
                open_texts.append((following, [*tokens, token]))
    assert found


def is_clean(text: str) -> bool:
    return clean_text(text) == text


@pytest.mark.parametrize(
    "regex",
    [
        "a|ab|abc",
        "(ab|b){0,2}",
        "a{2,4}",
        "[ab]{0,3}c",
        "(a|b)( (a|b)){0,2}",
        r"a\s{1,2}b",
        r"[abc]?\s?[abc]?",
        "é|a b",
        r"(?s).{0,3}",
        r"[^a]{2}",
    ],
)
def test_of_a_regex(regex: str) -> None:
    check(GenerationConfig(regex=regex), [t for t in ALL if re.fullmatch(regex, t) and is_clean(t)])


@pytest.mark.parametrize(
    ("grammar", "regex"),
    [
        ('start: "a" ("b" | "c")', "a[bc]"),
        ('start: "a"? B\nB: /b{1,2}/', "a?b{1,2}"),
        ('start: "a" " " "b" | "ab"', "a b|ab"),
        ('start: ("a" | "b"){1,3}', "[ab]{1,3}"),
        ('start: "a" "b"? "c"?\n%llguidance {}', "ab?c?"),
    ],
)
def test_of_a_grammar(grammar: str, regex: str) -> None:
    sentences = [text for text in ALL if re.fullmatch(regex, text)]
    check(GenerationConfig(grammar=grammar), sentences)


pieces = st.sampled_from(["a", "b", "c", "ab", " ", "é", "[ab]", "[^a]", "a?", "b{1,2}", "(a|bc)"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(pieces, min_size=1, max_size=2).map("".join), min_size=1, max_size=3))
def test_of_any_regex(alternatives: list[str]) -> None:
    regex = "|".join(alternatives)
    sentences = [text for text in ALL if re.fullmatch(regex, text) and is_clean(text)]
    if regex.strip() and sentences:
        # Characters other than those of the vocabulary are no concern of its masks.
        check(GenerationConfig(regex=regex), sentences)


def byte_texts(kind: str) -> Iterator[tuple[int, bytes]]:
    made = processor(kind, GenerationConfig(regex="(?s).*"))
    yield from enumerate(made._start.constraint.vocabulary.pieces)


@pytest.mark.parametrize("kind", ["byte_level", "unigram_with_bytes", "numbers"])
def test_within_a_character_only_bytes_that_complete_it_follow(kind: str) -> None:
    made = processor(kind, GenerationConfig(regex="日本|日記"))
    size = size_of(kind)
    pieces = dict(byte_texts(kind))
    single = {piece: token for token, piece in pieces.items() if len(piece) == 1}
    tokens: list[int] = []
    for byte in "日".encode():
        assert single[bytes([byte])] in allowed(made, size, tokens)
        tokens.append(single[bytes([byte])])
    starts = ["本".encode(), "記".encode()]
    expected = [t for t, p in pieces.items() if p and any(s.startswith(p) for s in starts)]
    assert allowed(made, size, tokens) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab \n\t\u00a0\u3000\ufeff\ufffdé中\x00\x7f\ufdd0👍"), max_size=7))
def test_tidy_texts_are_those_that_clean_up_changes_at_the_ends_only(text: str) -> None:
    assert bool(re.fullmatch(_python(CLEAN), text)) == is_clean(text)
    made = processor("byte_level", GenerationConfig(grammar='start: "a"'))
    tidiness = made._start.constraint.tidiness
    assert tidiness is not None
    # A text that ends in a word can go on from its ending as it can itself.
    ending = b""
    tidy = True
    for byte in text.encode():
        first = len(made._start.constraint.vocabulary.pieces)
        bits = np.unpackbits(tidiness.mask(ending), bitorder="little")[first:]
        tidy = tidy and bool(bits[byte])
        ending = Tidiness.follow(ending, bytes([byte]))
        if not tidy:
            break
    leading = text[: len(text) - len(text.lstrip(" \n"))]
    expected = leading in ("", " ") or (not text.strip(" \n") and text in ("\n", "\n\n"))
    middle = text.strip(" \n")
    trailing = text[len(text.rstrip(" \n")) :] if middle else ""
    expected = expected and is_clean(middle) and trailing in ("", " ", "\n", "\n\n")
    assert tidy == expected


def _python(regex: str) -> str:
    return re.sub(r"\\x\{([0-9A-F]+)\}", lambda m: re.escape(chr(int(m.group(1), 16))), regex)


def test_the_masks_of_the_same_text_do_not_depend_on_its_tokens() -> None:
    made = COMPILER.processor(GenerationConfig(regex="abc(ab|c)"))
    assert made is not None
    token = {text: number for number, text in TEXT.items()}
    ways: list[list[str]] = [["abc"], ["a", "b", "c"], ["ab", "c"]]
    masks = [allowed(made, SIZE, [token[part] for part in way]) for way in ways]
    assert masks[0] == masks[1] == masks[2] == [token["a"], token["c"], token["ab"]]


@pytest.mark.parametrize("kind", ["unigram", "unigram_with_bytes", "word_piece", "word_level"])
def test_special_unknown_and_missing_tokens_never_follow(kind: str) -> None:
    made = processor(kind, GenerationConfig(regex="(?s).*"))
    found = allowed(made, size_of(kind), [])
    assert EOS in found
    assert not {0, 2} & set(found)
    assert max(found) < tokenizer_of(kind).vocab_size


def test_parts_of_words_do_not_begin_a_text() -> None:
    made = processor("word_piece", GenerationConfig(regex="[a-z# ]*"))
    found = {tokenizer_of("word_piece").token(token) for token in allowed(made, 19, [])}
    assert {"one", "a"} <= found
    assert not {"##teen", "##s", "##b"} & found


def test_a_word_written_by_a_whole_decoder_is_what_the_mask_thinks() -> None:
    for kind in ("unigram", "byte_level", "word_piece", "word_level"):
        made = compiler_of(kind).processor(GenerationConfig(regex="(?s).*"))
        assert made is not None
        pieces = made._start.constraint.vocabulary.pieces
        tokens = allowed(made, size_of(kind), [])[1:]
        draw = np.random.default_rng(0)
        for _ in range(20):
            chosen = draw.choice(tokens, 6).tolist()
            text = b"".join(pieces[token] for token in chosen).decode(errors="replace")
            assert clean_text(text) == clean_text(tokenizer_of(kind).decode(chosen))


def test_rows_are_masked_in_place_and_by_minus_infinity() -> None:
    made = COMPILER.processor(GenerationConfig(regex="a"))
    assert made is not None
    scores = np.full((1, SIZE), 3.5, np.float32)
    result = made(state([[0]]), scores)
    assert result is scores
    assert set(scores[0].tolist()) == {3.5, -np.inf}
