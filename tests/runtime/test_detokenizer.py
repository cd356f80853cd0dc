"""Streaming text: pieces join to the whole, whatever tokens come."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from drl.runtime.detokenizer import Detokenizer, decode_text
from drl.runtime.text import REPLACEMENT, Tokenizer, clean_text
from tests.runtime.toy import VOCAB_SIZE, byte_tokenizer


def byte_level() -> Tokenizer:
    return Tokenizer(byte_tokenizer())


WORDS = ["▁", "▁a", "b", "▁the", "中", "▁▁", "\n", "�", "s"]


def byte_fallback() -> Tokenizer:
    """Decodes as sentence-piece models with byte fallback do: a space less at the beginning."""
    words = ["<pad>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    fast = FastTokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True)
    )
    fast.add_special_tokens(["<pad>", "</s>"])
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(fast)


def metaspace() -> Tokenizer:
    words = ["<pad>", "</s>", *WORDS]
    fast = FastTokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    fast.add_special_tokens(["<pad>", "</s>"])
    fast.decoder = decoders.Metaspace()
    return Tokenizer(fast)


def word_piece() -> Tokenizer:
    words = ["<pad>", "</s>", "un", "##aff", "##able", ".", "!", "do", "n't", "中"]
    fast = FastTokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    fast.add_special_tokens(["<pad>", "</s>"])
    fast.decoder = decoders.WordPiece()
    return Tokenizer(fast)


MAKERS: list[Callable[[], Tokenizer]] = [byte_level, byte_fallback, metaspace, word_piece]
TOKENIZERS = {make.__name__: make() for make in MAKERS}


def pieces_of(
    tokenizer: Tokenizer, tokens: list[int], stops: tuple[str, ...] = ()
) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(tokenizer, stops)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()], detokenizer


def token_lists(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Tokens at random, and the bytes of real characters, which random bytes seldom make."""
    anything = st.integers(0, tokenizer.vocab_size + 1)
    if tokenizer.vocab_size < 200:
        return st.lists(anything, max_size=60)
    real = st.text("ab 中国é👍\n☃", min_size=1, max_size=3).map(
        lambda text: [byte_id(tokenizer, byte) for byte in text.encode()]
    )
    parts = st.lists(st.one_of(anything.map(lambda token: [token]), real), max_size=20)
    return parts.map(lambda lists: [token for part in lists for token in part])


def byte_id(tokenizer: Tokenizer, byte: int) -> int:
    for token in range(tokenizer.vocab_size):
        name = tokenizer.token(token)
        if name == f"<0x{byte:02X}>" or name == BYTE_NAMES[byte]:
            return token
    raise AssertionError(byte)


def _byte_names() -> list[str]:
    """The characters that stand for bytes in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


BYTE_NAMES = _byte_names()


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(st.data())
def test_pieces_join_to_the_text(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(token_lists(tokenizer))
    pieces, _ = pieces_of(tokenizer, tokens)
    text = "".join(pieces)
    assert text == decode_text(tokenizer, tokens)
    assert text == clean_text(text)
    assert REPLACEMENT not in text


@settings(deadline=None)
@given(token_lists(TOKENIZERS["byte_level"]))
def test_byte_level_pieces_join_to_what_decoding_at_once_gives(tokens: list[int]) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    assert "".join(pieces_of(tokenizer, tokens)[0]) == clean_text(tokenizer.decode(tokens))


@pytest.mark.parametrize("name", ["metaspace", "word_piece"])
@settings(deadline=None)
@given(st.data())
def test_word_pieces_join_to_what_decoding_at_once_gives(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(token_lists(tokenizer))
    assert "".join(pieces_of(tokenizer, tokens)[0]) == clean_text(tokenizer.decode(tokens))


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@settings(deadline=None)
@given(st.text("ab中国é👍☃", min_size=1))
def test_a_character_comes_whole_with_its_last_byte(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = [byte_id(tokenizer, byte) for byte in text.encode()]
    pieces, _ = pieces_of(tokenizer, tokens)
    expected = []
    for character in text:
        expected += [""] * (len(character.encode()) - 1) + [character]
    assert pieces == [*expected, ""]


@settings(deadline=None)
@given(
    token_lists(TOKENIZERS["byte_level"]),
    st.lists(st.text("ab中 \n👍", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_a_stop_string_is_never_begun(tokens: list[int], stops: list[str]) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    whole = [byte_id(tokenizer, byte) for byte in "中国ab 👍a".encode()]
    pieces, detokenizer = pieces_of(tokenizer, tokens + whole, tuple(stops))
    text = "".join(pieces)
    assert text == decode_text(tokenizer, tokens + whole, stops)
    free, _ = pieces_of(tokenizer, tokens + whole)
    assert "".join(free).startswith(text)
    for stop in stops:
        if stop.strip() == stop:  # white space changes in the clean-up
            assert stop not in text
    if detokenizer.stopped:
        assert detokenizer.push(5) == detokenizer.finish() == ""


@pytest.mark.parametrize(
    ("text", "stops", "pieces"),
    [
        ("abcd", ["cd"], ["a", "b", "", "", ""]),
        ("abce", ["cd"], ["a", "b", "", "ce", ""]),
        ("abc", ["cd"], ["a", "b", "", "c"]),
        ("aab!", ["ab!"], ["", "a", "", "", ""]),
        ("xaby", ["b", "abz"], ["x", "", "a", "", ""]),
        ("a b", [" "], ["a", "", "", ""]),
        ("a\nb", ["\n"], ["a", "", "", ""]),
        ("a b", [], ["a", "", " b", ""]),
    ],
)
def test_what_may_begin_a_stop_string_is_held_back(
    text: str, stops: list[str], pieces: list[str]
) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    tokens = [byte_id(tokenizer, byte) for byte in text.encode()]
    assert pieces_of(tokenizer, tokens, tuple(stops))[0] == pieces


def test_broken_bytes_without_end_take_linear_time() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    broken = byte_id(tokenizer, 0x80)
    assert decode_text(tokenizer, [broken] * 20_000) == ""


def test_special_tokens_have_no_text() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    a = byte_id(tokenizer, ord("a"))
    assert decode_text(tokenizer, [0, a, 0, 1, a]) == "aa"


def test_ids_beyond_the_tokenizer_have_no_text() -> None:
    assert decode_text(TOKENIZERS["byte_level"], [VOCAB_SIZE + 3]) == ""


@pytest.mark.parametrize(
    ("given", "generated", "stops", "text", "stopped"),
    [
        ("a. b", "c", (". ",), "a. bc", False),  # a stop string of the prefix stops nothing
        ("a. b", "c. d", (". ",), "a. bc", True),  # but the next one does
        ("ab", "cd", ("bc",), "a", True),  # it may begin in the prefix
        ("ab", "xbc", ("b", "bcd"), "abx", True),  # held back, as the longer one could come
        ("ab", "xy", ("b", "bcd"), "abxy", False),
        ("abb", "cx", ("bc",), "ab", True),
        ("a", "xya", ("ab", "y"), "ax", True),
        ("aa", "a", ("aa",), "a", True),
        ("", "ab", ("b",), "a", True),
        ("ab", "", ("b", "bc"), "ab", False),
    ],
)
def test_stop_strings_end_behind_what_was_given(
    given: str, generated: str, stops: tuple[str, ...], text: str, stopped: bool
) -> None:
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, stops)
    pieces = [detokenizer.give(token) for token in tokenizer.encode(given, False)]
    for character in generated:
        (token,) = tokenizer.encode(character, False)
        pieces.append(detokenizer.push(token))
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == text
    assert detokenizer.stopped == stopped


@settings(deadline=None)
@given(st.lists(st.integers(2, VOCAB_SIZE - 1), max_size=30), st.integers(0, 30))
def test_without_stop_strings_given_tokens_are_as_any(tokens: list[int], count: int) -> None:
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.give(token) for token in tokens[:count]]
    pieces += [detokenizer.push(token) for token in tokens[count:]]
    assert "".join([*pieces, detokenizer.finish()]) == decode_text(tokenizer, tokens)
