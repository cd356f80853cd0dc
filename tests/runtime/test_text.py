"""Clean-up and the tokenizer."""

import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl.runtime import BundleError, RequestError
from drl.runtime.text import Cleaner, Tokenizer, clean_text
from tests.runtime.toy import EOS, byte_tokenizer

WHITE_SPACE = [chr(i) for i in range(sys.maxunicode + 1) if chr(i).isspace()]
WHITE_SPACE = [c for c in WHITE_SPACE if c not in "\x1c\x1d\x1e\x1f"]
messy = st.text(
    st.one_of(
        st.sampled_from(
            [*WHITE_SPACE, "\0", "\x7f", "\ufffd", "\ufeff", "\uffff", "a", "中", "👍"]
        ),
        st.characters(),
    )
)


def is_legal(character: str) -> bool:
    if character in WHITE_SPACE:
        return True
    noncharacter = ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF
    control = unicodedata.category(character) in ("Cc", "Cs")
    return not (noncharacter or control or character in "\ufeff\ufffd")


def reference_clean(text: str) -> str:
    """The clean-up character by character, by Unicode's own categories."""
    result = ""
    breaks = spaces = 0
    previous = ""
    for character in filter(is_legal, text):
        if character in WHITE_SPACE:
            spaces += 1
            if character in "\n\v\f\r\x85\u2028\u2029" and not (
                previous == "\r" and character == "\n"
            ):
                breaks += 1
        else:
            if spaces and result:
                result += "\n\n" if breaks > 1 else "\n" if breaks else " "
            breaks = spaces = 0
            result += character
        previous = character
    return result


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("", ""),
        ("  \n\t ", ""),
        (" 一百零五 ", "一百零五"),
        ("a\0b\x07c\x7f", "abc"),
        ("a\ufffd\ufffdb\uffffc\ufdd0", "abc"),
        ("\ufeffa", "a"),
        ("a  \t b", "a b"),
        ("a \n b", "a\nb"),
        ("a\r\nb", "a\nb"),
        ("a\r\n\r\n\n b", "a\n\nb"),
        ("a\u3000b\u00a0c\u2028d", "a b c\nd"),
        ("a \x00 b", "a b"),
        ("👩‍👩‍👧 é", "👩‍👩‍👧 é"),  # joiners and combining marks are text
        ("\ud800x", "x"),
        ("a\x1cb", "ab"),
    ],
)
def test_clean_text(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@given(messy)
def test_clean_text_agrees_with_the_reference(text: str) -> None:
    assert clean_text(text) == reference_clean(text)


@given(messy)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)


@given(st.lists(messy))
def test_cleaning_in_parts_is_cleaning_the_whole(parts: list[str]) -> None:
    cleaner = Cleaner()
    assert "".join(cleaner.feed(part) for part in parts) == clean_text("".join(parts))


def test_long_runs_of_white_space_are_cleaned_in_linear_time() -> None:
    text = ("a" + " " * 200_000) * 3 + "b"
    assert clean_text(text) == "a a a b"


def test_the_post_processor_adds_special_tokens() -> None:
    tokenizer = Tokenizer(byte_tokenizer())
    ids = tokenizer.encode("abc 中")
    assert ids[-1] == EOS
    assert tokenizer.decode(ids) == "abc 中"


def test_training_leftovers_do_not_change_prompts() -> None:
    fast = byte_tokenizer()
    fast.enable_padding(length=50)
    fast.enable_truncation(4)
    assert Tokenizer(fast).encode("abc" * 5) == Tokenizer(byte_tokenizer()).encode("abc" * 5)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RequestError, match="not valid Unicode at character 2"):
        Tokenizer(byte_tokenizer()).encode("ab\ud83d")


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    for content in ("", "{}", '{"version": "1.0"}'):
        file.write_text(content)
        with pytest.raises(BundleError, match="is no tokenizer"):
            Tokenizer.load(file)
    with pytest.raises(BundleError):
        Tokenizer.load(tmp_path / "missing.json")
