"""What can be compiled, what is kept, and what is said about what cannot."""

import importlib
import subprocess
import sys
import threading
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from drl.runtime import BackendError, RequestError
from drl.runtime.constraints import ConstraintCompiler
from drl.runtime.constraints import compiler as module
from drl.runtime.constraints.matcher import MatcherTokens
from drl.runtime.constraints.vocabulary import Vocabulary
from drl.runtime.generation import GenerationConfig
from drl.runtime.text import Tokenizer
from tests.runtime.constraints.vocabularies import (
    EOS,
    SPECIAL,
    allowed,
    byte_level,
    compiler_of,
    size_of,
    texts,
    tokenizer_of,
)
from tests.runtime.constraints.vocabularies import compiler as new_compiler

KIND = "byte_level"


def test_without_a_constraint_there_is_no_processor_and_nothing_is_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Vocabulary, "read", lambda *_: pytest.fail("prepared"))
    assert new_compiler(tokenizer_of(KIND)).processor(GenerationConfig(num_beams=2)) is None
    assert ConstraintCompiler(None, 10, EOS).processor(GenerationConfig()) is None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"regex": "a("}, "regex is not understood: .*unclosed group"),
    ({"regex": "a(?=b)"}, "regex is not understood: .*look-around"),
    ({"regex": r"\bword\b"}, "regex is not understood: .*look"),
    ({"regex": "[a-"}, "regex is not understood: .*unclosed character class"),
    ({"regex": "a  b"}, "regex matches no text that results can have"),
    ({"regex": " a"}, "regex matches no text that results can have"),
    ({"regex": "\ufffd"}, "regex matches no text that results can have"),
    ({"regex": "[^\\s\\S]"}, "regex "),
    ({"grammar": "start: nothing"}, "grammar is not understood: .*unknown name"),
    ({"grammar": "begin: 'a'"}, "grammar is not understood: "),
    ({"grammar": "nonsense"}, "grammar is not understood: .*Expected token"),
    ({"grammar": "start: start"}, "grammar cannot be met at the beginning: it allows no text"),
    ({"grammar": "start: <pad>"}, "grammar is not understood: .*special token"),
    ({"grammar": "start: <[1]>"}, "grammar cannot be met at the beginning"),
    ({"json_schema": {"type": "number?"}}, "json_schema is not understood: Invalid type"),
    ({"json_schema": {"not": {}}}, "json_schema is not understood: .*not"),
    ({"json_schema": {"enum": []}}, "json_schema is not understood: Unsatisfiable"),
    ({"json_schema": {"$ref": "#/$defs/no"}}, "json_schema is not understood: "),
    ({"json_schema": {"$ref": "https://a.invalid/b"}}, "json_schema is not understood: "),
    ({"json_schema": {"format": "no", "type": "string"}}, "json_schema is not understood: "),
    ({"json_schema": {"x-guidance": 3}}, "json_schema is not understood: "),
    ({"json_schema": '{"const": "\\ud800"}'}, "json_schema is not understood: "),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_is_wrong_is_said_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}") as caught:
        compiler_of(KIND).processor(GenerationConfig(**options))
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 300
    assert "<state>" not in said
    assert "backtrace" not in said


def test_a_value_that_clean_up_changes_is_refused_where_it_comes_up() -> None:
    with pytest.raises(
        RequestError, match=r"""^json_schema cannot be met after '"a ': only white"""
    ):
        texts(KIND, GenerationConfig(json_schema={"const": "a  b"}), 1)


def test_a_constraint_too_large_for_the_library_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^regex is not understood: .*fuel"):
        compiler_of(KIND).processor(GenerationConfig(regex="(a{1000}){1000}"))


def test_a_bundle_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(RequestError, match=r"need a tokenizer, and this bundle has none"):
        ConstraintCompiler(None, 10, EOS).processor(GenerationConfig(regex="a"))


def test_the_library_is_asked_for_by_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "llguidance":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    compiler = new_compiler(tokenizer_of(KIND))
    with pytest.raises(BackendError, match=r"`pip install \"drl\[constraints\]\"`$"):
        compiler.processor(GenerationConfig(regex="a"))
    monkeypatch.undo()
    assert compiler.processor(GenerationConfig(regex="a")) is not None


def test_a_broken_library_is_not_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, package: str | None = None) -> Any:
        raise ImportError("cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"does not load .cannot open shared object"):
        new_compiler(tokenizer_of(KIND)).processor(GenerationConfig(regex="a"))


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys; from tests.runtime.constraints.vocabularies import *; "
        "processor('byte_level', GenerationConfig(regex='a')); "
        "print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_constraints_are_compiled_once_and_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_COMPILED", 2)
    compiler = new_compiler(tokenizer_of(KIND))
    compiled: list[str] = []
    real = MatcherTokens.compile

    def count(self: Any, grammar: str) -> Any:
        compiled.append(grammar)
        return real(self, grammar)

    def start(regex: str) -> object:
        made = compiler.processor(GenerationConfig(regex=regex))
        assert made is not None
        return made._start

    first = start("a")
    monkeypatch.setattr(MatcherTokens, "compile", count)
    assert start("a") is first
    assert not compiled
    start("b")
    assert start("a") is first
    start("c")  # b is the one that was not used for the longest time
    assert start("a") is first
    compiled.clear()
    start("b")
    assert compiled


def test_equal_texts_of_different_options_are_different_constraints() -> None:
    compiler = compiler_of(KIND)
    text = 'start: "a"'
    regex = compiler.processor(GenerationConfig(regex=text))
    grammar = compiler.processor(GenerationConfig(grammar=text))
    assert regex is not None
    assert grammar is not None
    assert allowed(regex, size_of(KIND), []) != allowed(grammar, size_of(KIND), [])


def test_threads_may_compile_at_once() -> None:
    compiler = new_compiler(tokenizer_of(KIND))
    found: list[list[int]] = []

    def work() -> None:
        for regex in ("a|b", "b|c", "a|b"):
            made = compiler.processor(GenerationConfig(regex=regex))
            assert made is not None
            found.append(allowed(made, size_of(KIND), []))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert len({tuple(tokens) for tokens in found}) == 2


def test_the_white_space_of_a_document_is_the_users_choice() -> None:
    schema = {"type": "array", "items": {"enum": [1]}, "minItems": 2, "maxItems": 2}
    found = set(texts(KIND, GenerationConfig(json_schema=schema), 40))
    assert "[1,1]" in found
    assert len(found) > 1
    compact = schema | {"x-guidance": {"whitespace_flexible": False}}
    assert set(texts(KIND, GenerationConfig(json_schema=compact), 10)) == {"[1,1]"}


def test_properties_come_in_the_order_of_the_schema() -> None:
    properties = {name: {"const": 1} for name in ("b", "a", "c")}
    schema = {"properties": properties, "required": ["a", "b", "c"], "additionalProperties": False}
    schema |= {"type": "object", "x-guidance": {"whitespace_flexible": False}}
    assert texts(KIND, GenerationConfig(json_schema=schema), 1) == ['{"b":1,"a":1,"c":1}']


def test_a_decoder_that_gives_tokens_no_text_of_their_own_is_refused() -> None:
    vocabulary = {
        name: number for number, name in enumerate([*SPECIAL, "a", "b</w>", "c", "d</w>"])
    }
    fast = FastTokenizer(models.BPE(vocabulary, []))
    fast.decoder = decoders.BPEDecoder()
    fast.add_special_tokens(SPECIAL)
    with pytest.raises(RequestError, match=r"decoder of this bundle's .BPEDecoder. joins them"):
        new_compiler(Tokenizer(fast)).processor(GenerationConfig(regex="a"))


def test_a_tokenizer_without_letters_is_refused() -> None:
    fast = FastTokenizer(models.WordLevel({name: n for n, name in enumerate([*SPECIAL, "-"])}))
    fast.add_special_tokens(SPECIAL)
    with pytest.raises(RequestError, match="no token of letters or digits"):
        new_compiler(Tokenizer(fast)).processor(GenerationConfig(regex="a"))


def test_added_tokens_that_are_not_special_are_text() -> None:
    fast = byte_level()
    fast.add_tokens(["<sep>"])
    tokenizer = Tokenizer(fast)
    made = new_compiler(tokenizer).processor(GenerationConfig(regex="<sep>a"))
    assert made is not None
    token = tokenizer.token_id("<sep>")
    assert token in allowed(made, tokenizer.vocab_size + 5, [])
