"""What a command line says of how to generate, as fields of `GenerationConfig`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from drl.runtime.engine import Engine
from drl.runtime.errors import RequestError
from drl.runtime.generation import GenerationConfig
from drl.runtime.options.defaults import merge

_EARLY_STOPPING = {"true": True, "false": False, "never": "never"}
_IDS = "ids:"
# Options whose values are tokens, which only a bundle's tokenizer can tell.
_TOKENS = ("forced_bos_token_id", "forced_eos_token_id")
_TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_TEXTS = (*_TOKENS, *_TOKEN_LISTS, "bad_words", "sequence_bias", "forced_decoder_ids")


@dataclass(frozen=True)
class Given:
    """Options as they were given; those that name tokens wait for the bundle.

    Attributes:
        file: Fields that the file of `--config` gives.
        fields: Fields given on the command line, which go before those of the file.
        texts: What names tokens: option name to the texts that were given.
    """

    file: Mapping[str, Any]
    fields: Mapping[str, Any]
    texts: Mapping[str, Any]

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> Self:
        """Sort the command line's arguments and read the files that they name.

        Raises:
            RequestError: A file cannot be read, or a value is wrong whatever the bundle.
        """
        given = {name: value for name, value in arguments.items() if value not in (None, ())}
        config = given.pop("config", None)
        texts = {name: given.pop(name) for name in _TEXTS if name in given}
        if "early_stopping" in given:
            given["early_stopping"] = _EARLY_STOPPING[given["early_stopping"]]
        if "json_schema" in given:
            given["json_schema"] = _schema(given["json_schema"])
        if "grammar" in given:
            given["grammar"] = _grammar(given["grammar"])
        GenerationConfig.check_values(given)
        return cls(_read_config(config) if config else {}, given, texts)

    def options(self, engine: Engine) -> dict[str, Any]:
        """All fields given, for `engine.configure`.

        Log-probabilities are left out unless they are asked for.

        Raises:
            RequestError: The bundle's vocabulary has no such token.
        """
        fields = dict(self.fields)
        for name, value in self.texts.items():
            if name in _TOKENS:
                fields[name] = engine.token_id(value)
            elif name in _TOKEN_LISTS:
                fields[name] = [engine.token_id(token) for token in value]
            elif name == "forced_decoder_ids":
                fields[name] = [(position, engine.token_id(token)) for position, token in value]
            elif name == "bad_words":
                sequences = [ids for text in value for ids in _sequences(engine, text)]
                fields["bad_words_ids"] = list(dict.fromkeys(sequences))
            elif name == "sequence_bias":
                fields[name] = [(ids, x) for text, x in value for ids in _sequences(engine, text)]
        options = merge(self.file, fields)
        options.setdefault("logprobs", bool(options.get("top_logprobs")))
        return options


def prefix_of(text: str | None) -> str | list[int] | None:
    """The prefix that a command line gives: a text, or token ids where it says so."""
    return text if text is None or not text.startswith(_IDS) else list(_ids(text))


def _sequences(engine: Engine, text: str) -> list[tuple[int, ...]]:
    """Token sequences of a text: as it begins a text, and as it follows a space, if they differ."""
    if text.startswith(_IDS):
        return [_ids(text)]
    if engine.tokenizer is None:
        raise RequestError(f"the bundle has no tokenizer.json; instead of {text!r} give ids:3,4")
    forms = [tuple(engine.tokenizer.encode(start + text, False)) for start in ("", " ")]
    sequences = [ids for ids in dict.fromkeys(forms) if ids]
    if not text.strip() or not sequences:
        raise RequestError(f"{text!r} has no tokens to bar or to favour")
    return sequences


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.removeprefix(_IDS).split(","))
    except ValueError:
        raise RequestError(f"{text!r} holds no token ids; write them as ids:3,4") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise RequestError(f"{path} holds a {type(document).__name__}, not an object of options")
    try:
        GenerationConfig.check_values(document)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
    return document


def _schema(value: str) -> str:
    return value if value.lstrip().startswith("{") else _read_text(Path(value))


def _grammar(value: str) -> str:
    """A grammar's text, or what the file of this name holds; no grammar is without : and =."""
    is_text = any(mark in value for mark in ":=") and not _is_file(value)
    return value if is_text else _read_text(Path(value))


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # too long for a name
        return False


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not UTF-8; convert it, for example with iconv") from None
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror or error}") from None
