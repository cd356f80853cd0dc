"""Task accuracy: how many inputs of a file a bundle answers exactly, decoded greedily."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from drl.export.tokenizers import FoundTokenizer
from drl.runtime.engine import Engine
from drl.runtime.errors import ExportError, RequestError
from drl.runtime.text import Tokenizer, clean_text


@dataclass(frozen=True)
class Pair:
    """An input, and the one answer that is right.

    Attributes:
        source: The input.
        target: The answer.
        place: Where the pair was read, for messages: `FILE, line N`.
    """

    source: str
    target: str
    place: str


def read_pairs(path: Path) -> list[Pair]:
    """Read a file of JSON lines `{"source": "…", "target": "…"}`; blank lines are skipped.

    Raises:
        ExportError: The file cannot be read, holds no pair, or a line is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ExportError(
            f"{path} cannot be read: {error.strerror or error}; give a file of JSON lines"
        ) from None
    except UnicodeDecodeError as error:
        raise ExportError(
            f"{path} cannot be read: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from None
    pairs = [
        _pair(f"{path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not pairs:
        raise ExportError(f"{path} holds no pairs; give lines of source and target")
    return pairs


def check_pairs(pairs: list[Pair], found: FoundTokenizer, max_source_length: int) -> None:
    """Check that a model can take every input, before anything is made of it.

    Raises:
        ExportError: There is no tokenizer, or an input is empty, too long or no Unicode text.
    """
    if found.content is None:
        raise ExportError(
            f"there is no tokenizer to evaluate texts with ({found.note}); add a tokenizer.json, "
            "or leave --evaluate out"
        )
    tokenizer = Tokenizer(FastTokenizer.from_buffer(found.content))
    for pair in pairs:
        if not pair.source.strip():
            raise ExportError(f"{pair.place}: the source is empty; give it some text")
        try:
            length = len(tokenizer.encode(pair.source))
        except RequestError as error:
            raise ExportError(f"{pair.place}: {error}") from None
        if not length:
            raise ExportError(f"{pair.place}: the source has no tokens; give it other text")
        if length > max_source_length:
            raise ExportError(
                f"{pair.place}: the source has {length} tokens and the model reads "
                f"{max_source_length}; shorten it"
            )


def count_right(bundle: Path, pairs: list[Pair]) -> int:
    """Return how many pairs a bundle answers exactly, white space at the ends aside.

    All else is generated as the bundle does by default, on the paths that its router chooses.

    Raises:
        ExportError: The bundle cannot take an input, or has no tokenizer to read it.
    """
    with Engine.from_bundle(bundle, verify_hashes=False) as engine:
        try:
            results = engine.generate(
                [pair.source for pair in pairs],
                num_beams=1,
                num_return_sequences=1,
                do_sample=False,
                logprobs=False,
            )
        except RequestError as error:
            raise ExportError(f"the evaluation set does not suit the model: {error}") from None
    answers = zip(results, pairs, strict=True)
    return sum(result.text == clean_text(pair.target) for result, pair in answers)


def _pair(place: str, line: str) -> Pair:
    try:
        document = json.loads(line)
        source, target = document["source"], document["target"]
        if isinstance(source, str) and isinstance(target, str):
            return Pair(source, target, place)
    except (ValueError, KeyError, TypeError):
        pass
    raise ExportError(
        f'{place}: not {{"source": "…", "target": "…"}} with two texts; mend the line'
    )
