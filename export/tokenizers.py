"""The tokenizer of a checkpoint folder, as the `tokenizer.json` that a bundle carries.

The folder's own `tokenizer.json` is taken. Where there is only a sentencepiece model or another
vocabulary, `transformers` converts it, if it is installed. Else the bundle has none, and prompts
are token ids. No code of the folder is ever run: conversion sees a copy of its vocabulary and
configuration files alone.

Multilingual translation models mark the source language in the prompt. Their tokenizers add the
token of one language, which is the folder's default (`src_lang` in `tokenizer_config.json`, else
English); a prompt in another language is given as token ids, or `src_lang` is changed before the
export. The target language is no matter of the tokenizer: it is the forced first token.
"""

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from drl.export.sentencepiece_tokenizers import convert_slow
from drl.export.tensor_files import is_lfs_pointer, reading
from drl.runtime.bundle import TOKENIZER_NAME
from drl.runtime.errors import CheckpointError

CONFIG_NAME = "tokenizer_config.json"
_VOCABULARIES = (
    *("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model"),
    *("source.spm", "vocab.json", "vocab.txt"),
)
_COMPANIONS = (
    *("target.spm", "target_vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", CONFIG_NAME, "config.json"),
)


@dataclass(frozen=True)
class FoundTokenizer:
    """A folder's tokenizer.

    Attributes:
        content: A `tokenizer.json`, or None for token ids only.
        note: Where it came from if that was not a `tokenizer.json`, or why there is none; else
            empty.
    """

    content: bytes | None
    note: str = ""


def find_tokenizer(folder: Path, vocab_size: int) -> FoundTokenizer:
    """Find or convert the tokenizer of a checkpoint folder.

    Args:
        folder: The checkpoint.
        vocab_size: Tokens of the model.

    Raises:
        CheckpointError: The tokenizer is damaged, cannot be converted, needs code of its own, or
            has tokens that the model has not.
    """
    with reading(folder):
        found = _find(folder)
    if found.content is not None:
        _check_size(Tokenizer.from_buffer(found.content), vocab_size)
    return found


def _find(folder: Path) -> FoundTokenizer:
    vocabulary = next((name for name in _VOCABULARIES if (folder / name).exists()), None)
    if (folder / TOKENIZER_NAME).exists():
        return _own(folder)
    if vocabulary is None:
        return FoundTokenizer(None, "none in the checkpoint, so prompts are token ids only")
    return _converted(folder, vocabulary)


def _own(folder: Path) -> FoundTokenizer:
    path = folder / TOKENIZER_NAME
    _refuse_pointer(path)
    content = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception for whatever is wrong
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is no tokenizer ({reason}); copy it again") from None
    if _set_source_language(tokenizer, _read_object(folder / CONFIG_NAME)):
        return FoundTokenizer(tokenizer.to_str().encode())
    return FoundTokenizer(content)


def _set_source_language(tokenizer: Tokenizer, config: Mapping[str, Any]) -> bool:
    """Put the source language's token where the tokenizer's class would put it.

    A `tokenizer.json` of these classes may lag behind: they set its template anew whenever they
    load it.

    Returns:
        Whether the tokenizer is of such a class.
    """
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if kind not in _SOURCE_LANGUAGES:
        return False
    default, first = _SOURCE_LANGUAGES[kind]
    language = config.get("src_lang") or default
    names = [language, "</s>"]
    tokens = [(name, tokenizer.token_to_id(name)) for name in names]
    if any(token is None for _, token in tokens):
        return False
    first = first and not config.get("legacy_behaviour", False)
    template = [language, "$A", "</s>"] if first else ["$A", "</s>", language]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=tokens)
    return True


_SOURCE_LANGUAGES: Mapping[str, tuple[str, bool]] = {
    "NllbTokenizer": ("eng_Latn", True),
    "MBartTokenizer": ("en_XX", False),
    "MBart50Tokenizer": ("en_XX", True),
}
"""The default source language of a tokenizer's class, and whether its token comes first."""


def _converted(folder: Path, vocabulary: str) -> FoundTokenizer:
    config = _read_object(folder / CONFIG_NAME)
    if "auto_map" in config:
        raise CheckpointError(
            f"{folder / CONFIG_NAME} asks for code of the folder (`auto_map`), which is never run; "
            f"save the tokenizer's {TOKENIZER_NAME} beside it where you trust that code"
        )
    try:
        import transformers

        with tempfile.TemporaryDirectory() as scratch:
            _copy_data(folder, Path(scratch))
            content = _convert(scratch)
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        return FoundTokenizer(
            None,
            f"none, so prompts are token ids only: {vocabulary} was not converted ({reason}); "
            f"`pip install transformers sentencepiece`, or add the {TOKENIZER_NAME}",
        )
    except CheckpointError:
        raise
    except Exception as error:  # a library's answer to a damaged or strange vocabulary
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{folder / vocabulary} cannot be converted by transformers "
            f"{transformers.__version__} ({reason}); add the {TOKENIZER_NAME}, or remove the "
            "tokenizer's files to export for token ids"
        ) from None
    note = f"converted from {vocabulary} by transformers {transformers.__version__}"
    return FoundTokenizer(content, note)


def _copy_data(folder: Path, scratch: Path) -> None:
    """Copy what a conversion may read; no code and no pickle is among it."""
    for name in (*_VOCABULARIES, *_COMPANIONS):
        if (folder / name).exists():
            _refuse_pointer(folder / name)
            shutil.copyfile(folder / name, scratch / name)
    config = _read_object(scratch / "config.json")
    config.pop("auto_map", None)
    (scratch / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _convert(folder: str) -> bytes:
    import transformers

    with _quiet(transformers.utils.logging):
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False, local_files_only=True
        )
        fast = tokenizer.backend_tokenizer if tokenizer.is_fast else convert_slow(tokenizer)
    language = getattr(tokenizer, "src_lang", None) if tokenizer.is_fast else None
    if language and fast.token_to_id(language) is None:
        raise ValueError(f"it has no token {language!r}, its source language")
    content: str = fast.to_str()
    return content.encode()


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep a library's remarks out of the exporter's output."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _check_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if last >= vocab_size:
        raise CheckpointError(
            f"the tokenizer has token ids up to {last} and the model's vocabulary ends at "
            f"{vocab_size - 1}; give the checkpoint its own tokenizer"
        )


def _refuse_pointer(path: Path) -> None:
    if is_lfs_pointer(path):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the file; run `git lfs pull`")


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not an object")
    return values
