"""Whatever the model, the text that the caller gets meets the constraint."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from drl.runtime.generation import GenerationConfig
from tests.runtime.constraints.vocabularies import WRITING_JSON, texts

COUNT = 40
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "colour": {"enum": ["red", "green", "blue"]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 3},
        "where": {
            "type": "object",
            "properties": {"x": {"type": "boolean"}, "y": {"type": "null"}},
            "required": ["x", "y"],
            "additionalProperties": False,
        },
        "unit": {"const": "one"},
    },
    "required": ["name", "age", "colour", "code", "tags", "where", "unit"],
    "additionalProperties": False,
}


def is_integer(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)


def check_document(document: Any) -> None:
    assert list(document) == list(SCHEMA["properties"])
    assert isinstance(document["name"], str)
    assert 1 <= len(document["name"]) <= 6
    assert is_integer(document["age"])
    assert 0 <= document["age"] <= 130
    assert document["colour"] in ("red", "green", "blue")
    assert re.fullmatch("[A-Z]{2}-[0-9]{4}", document["code"])
    assert len(document["tags"]) <= 3
    assert all(isinstance(tag, str) and len(tag) <= 3 for tag in document["tags"])
    assert list(document["where"]) == ["x", "y"]
    assert isinstance(document["where"]["x"], bool)
    assert document["where"]["y"] is None
    assert document["unit"] == "one"


@pytest.mark.parametrize("kind", WRITING_JSON)
def test_a_text_under_a_schema_is_json_of_it(kind: str) -> None:
    found = texts(kind, GenerationConfig(json_schema=SCHEMA), COUNT)
    assert len(set(found)) == COUNT
    for text in found:
        check_document(json.loads(text))


SMALL_SCHEMAS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    ({"type": "integer", "minimum": -5, "maximum": 99}, is_integer),
    ({"type": "boolean"}, lambda value: isinstance(value, bool)),
    ({"type": "null"}, lambda value: value is None),
    ({"type": "string", "maxLength": 5}, lambda v: isinstance(v, str) and len(v) <= 5),
    ({"enum": ["a b", 7, None, [1, 2]]}, lambda value: value in ("a b", 7, None, [1, 2])),
    (
        {"type": "array", "items": {"enum": [1, 23]}, "minItems": 1, "maxItems": 4},
        lambda value: 1 <= len(value) <= 4 and set(value) <= {1, 23},
    ),
    (
        {"anyOf": [{"const": "red"}, {"type": "array", "maxItems": 0}]},
        lambda value: value in ("red", []),
    ),
]


@pytest.mark.parametrize("kind", WRITING_JSON)
@pytest.mark.parametrize(("schema", "holds"), SMALL_SCHEMAS)
def test_any_value_may_be_the_document(
    kind: str, schema: dict[str, Any], holds: Callable[[Any], bool]
) -> None:
    for text in texts(kind, GenerationConfig(json_schema=schema), 15):
        assert holds(json.loads(text)), text


REGEXES = [
    "(one|two)( plus (one|two)){0,3}",
    "[a-z]{1,8}",
    "[A-Z]{2}-[0-9]{4}",
    r"[a-z]{1,6}(, [a-z]{1,6}){1,2}\.",
    r"(a|b)?",
    r"\S{1,6} \S{1,6}",
    r"[^ ]{3}",
    r"(?s).{0,12}",
    r"^red$|^green$",
    r"a/b|c\/d",
    '"one"',
    r"one\s+two",
    r"\s*(one|two)\s*",
]


@pytest.mark.parametrize("kind", WRITING_JSON)
@pytest.mark.parametrize("regex", REGEXES)
def test_a_text_under_a_regex_matches_as_a_whole(kind: str, regex: str) -> None:
    if kind == "unigram" and "/" in regex:
        pytest.skip("its vocabulary has no slash")
    for text in texts(kind, GenerationConfig(regex=regex), 25):
        assert re.fullmatch(regex, text), text


@pytest.mark.parametrize("kind", ["unigram_with_bytes", "byte_level", "numbers"])
def test_characters_of_several_bytes_are_written_whole(kind: str) -> None:
    regex = "(日本|東京|é|👍|ß){1,5}"
    for text in texts(kind, GenerationConfig(regex=regex), 25):
        assert re.fullmatch(regex, text), text


@pytest.mark.parametrize("kind", ["word_piece", "word_level"])
def test_vocabularies_of_words_join_them_by_spaces(kind: str) -> None:
    regex = "(one|two|three)( (plus|one|two|three)){0,4}"
    found = texts(kind, GenerationConfig(regex=regex), 25)
    assert all(re.fullmatch(regex, text) for text in found)
    assert any(" " in text for text in found)


def test_parts_of_words_are_joined_to_the_word_before() -> None:
    regex = "(three|four)(teen|s)?( plus (three|four)(teen|s)?)?"
    found = texts("word_piece", GenerationConfig(regex=regex), 60)
    assert all(re.fullmatch(regex, text) for text in found)
    assert any("teen" in text for text in found)


SUM = """
start: term (SIGN term)*
term: NUMBER | "(" term SIGN term ")"
SIGN: "+" | "-"
NUMBER: /[1-9][0-9]?/
%ignore / /
"""
# A sum holds one pair of parentheses per term at the most deeply: random texts end soon.
NESTED = re.compile(r"\(([1-9][0-9]?) ?[+-] ?([1-9][0-9]?)\)")


@pytest.mark.parametrize("kind", ["unigram_with_bytes", "byte_level", "numbers"])
def test_a_text_under_a_grammar_is_a_sentence_of_it(kind: str) -> None:
    for text in texts(kind, GenerationConfig(grammar=SUM), 25):
        compact = text.replace(" ", "")
        while NESTED.search(compact):
            compact = NESTED.sub("1", compact)
        assert re.fullmatch(r"[1-9][0-9]?([+-][1-9][0-9]?)*", compact), text
        assert not re.search(r"[0-9] [0-9]", text)


@pytest.mark.parametrize("kind", WRITING_JSON)
def test_a_grammar_may_hold_a_schema_and_end_with_white_space(kind: str) -> None:
    grammar = 'start: "one" " " doc "\\n"?\ndoc: %json {"enum": [1, "two"]}'
    if kind == "unigram":
        grammar = grammar.replace(' "\\n"?', "")
    for text in texts(kind, GenerationConfig(grammar=grammar), 15):
        assert text in ("one 1", 'one "two"')


@pytest.mark.parametrize("kind", ["unigram_with_bytes", "byte_level", "numbers"])
@pytest.mark.parametrize("gap", [r"/\s+/", r"/[ \t]+/", r"/(.|\n)/", r"/[a\u00a0\u3000\ufeff]/"])
def test_a_grammar_allows_nothing_that_clean_up_changes(kind: str, gap: str) -> None:
    config = GenerationConfig(grammar=f'start: "b" GAP{{0,6}} "b"\nGAP: {gap}')
    draws = 25
    for seed in range(draws):
        (text,) = texts(kind, config, 1, seed)
        assert re.fullmatch(r"b(?s:.*)b", text)
        assert not re.search("  |\n\n\n|[\t\u00a0\u3000\ufeff]", text)
