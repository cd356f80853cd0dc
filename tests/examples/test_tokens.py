import random
from itertools import islice

import pytest

from examples.numbers.tasks import TASKS, training_examples
from examples.numbers.tokens import EOS, PAD, START, build_tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def _pieces(tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text).ids[:-1]]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one hundred and twenty-one", ["one", " hundred", " and", " twenty", "-one"]),
        ("翻译成英文：十五", list("翻译成英文：十五")),
        ("what is 12 plus 30?", ["what", " is", " ", "1", "2", " plus", " ", "3", "0", "?"]),
        ("repeat six two times", ["repeat", " ", "s", "i", "x", " two", " times"]),
        ("sixsix", list("sixsix")),
        ("-42", ["-", "4", "2"]),
    ],
)
def test_words_are_single_tokens_and_everything_else_is_spelled(tokenizer, text, pieces) -> None:
    assert _pieces(tokenizer, text) == pieces


def test_special_tokens_have_their_places(tokenizer) -> None:
    assert [tokenizer.id_to_token(i) for i in (PAD, EOS, START)] == ["<pad>", "<eos>", "<start>"]
    assert tokenizer.encode("ab").ids[-1] == EOS
    assert tokenizer.encode("").ids == [EOS]


@pytest.mark.parametrize(
    "text", ["", " ", "naïve 日本 😀\n\ttwo  to", "<|x|>", "\x00\x7f", "é" * 9]
)
def test_any_text_comes_back_exactly(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_examples_come_back_and_stay_short(tokenizer) -> None:
    examples = islice(training_examples(random.Random(0), dict.fromkeys(TASKS, 1.0)), 2000)
    for example in examples:
        for text, longest in ((example.prompt, 24), (example.answer, 25)):
            ids = tokenizer.encode(text).ids
            assert tokenizer.decode(ids) == text
            assert len(ids) <= longest


def test_the_shipped_file_is_what_the_code_builds(tokenizer) -> None:
    assert build_tokenizer().to_str() == tokenizer.to_str()
    assert tokenizer.get_vocab_size() <= 700
