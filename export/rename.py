"""Tensors under other names: our names to theirs, exact or with `*` for the same text in both.

`{"*": "model.*", "lm_head.weight": "head.weight"}` takes every tensor from under `model.`, and the
head by its own name. An exact name goes before a pattern.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from drl.runtime.errors import CheckpointError

WILDCARD = "*"
_MOST_LISTED = 4


def read_rename(path: Path) -> dict[str, str]:
    """Read a JSON object of our names or patterns to theirs.

    Raises:
        CheckpointError: The file is missing, no JSON, or holds something else.
    """
    try:
        names: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); write it again") from None
    if not isinstance(names, dict):
        kind = type(names).__name__
        raise CheckpointError(f"{path} holds a {kind}, not an object of our names to theirs")
    if wrong := [ours for ours, theirs in names.items() if not isinstance(theirs, str)]:
        raise CheckpointError(f"{path}: the name given for `{wrong[0]}` is no text")
    return names


def expand_rename(
    rename: Mapping[str, str], ours: Collection[str], theirs: Collection[str]
) -> dict[str, str]:
    """Return our tensors to theirs, one by one.

    Args:
        rename: Our names or patterns to theirs.
        ours: The tensors that the model has.
        theirs: The tensors that the checkpoint holds.

    Raises:
        CheckpointError: A name is unknown on either side, or a pattern is ambiguous; all mistakes
            are named.
    """
    exact = {own: name for own, name in rename.items() if WILDCARD not in own + name}
    patterns = {own: name for own, name in rename.items() if own not in exact}
    mistakes = [_unknown(own, ours, "the model") for own in exact if own not in ours]
    expanded = {own: name for own, name in exact.items() if own in ours}
    origin: dict[str, str] = {}
    for own, name in patterns.items():
        if own.count(WILDCARD) != name.count(WILDCARD):
            mistakes.append(f"`{own}` and `{name}` differ in how many {WILDCARD} they have")
            continue
        matches = dict(_matches(own, name, ours))
        if not matches:
            mistakes.append(_unknown(own, ours, "the model"))
        for tensor, found in matches.items():
            if tensor in exact:
                continue
            if expanded.setdefault(tensor, found) != found:
                mistakes.append(f"`{origin[tensor]}` and `{own}` both rename {tensor}")
            origin.setdefault(tensor, own)
    absent = [name for name in expanded.values() if name not in theirs]
    mistakes += [_unknown(name, theirs, "the checkpoint") for name in absent]
    if mistakes:
        more = len(mistakes) - _MOST_LISTED
        shown = "; ".join(mistakes[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
        raise CheckpointError(f"renaming tensors: {shown}")
    return expanded


def _matches(own: str, name: str, tensors: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the tensors that a pattern of ours matches, and what their pattern makes of each."""
    expression = re.compile("(.+?)".join(map(re.escape, own.split(WILDCARD))))
    first, *rest = name.split(WILDCARD)
    for tensor in tensors:
        if match := expression.fullmatch(tensor):
            texts = zip(match.groups(), rest, strict=True)
            yield tensor, first + "".join(text + after for text, after in texts)


def _unknown(name: str, known: Collection[str], owner: str) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" (nearest: {close[0]})" if close else ""
    what = f"no tensors like `{name}`" if WILDCARD in name else f"no tensor `{name}`"
    return f"{owner} has {what}{hint}"
