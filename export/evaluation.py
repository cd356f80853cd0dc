"""Task accuracy: how many inputs of a file a bundle answers exactly, decoded greedily."""

import json
from dataclasses import dataclass
from pathlib import Path

from drl.runtime.engine import Engine
from drl.runtime.errors import ExportError, RequestError
from drl.runtime.text import clean_text


@dataclass(frozen=True)
class Pair:
    """An input, and the one answer that is right."""

    source: str
    target: str


def read_pairs(path: Path) -> list[Pair]:
    """Read a file of JSON lines `{"source": "…", "target": "…"}`; blank lines are skipped.

    Raises:
        ExportError: The file cannot be read, holds no pair, or a line is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{path} cannot be read ({error}); give UTF-8 lines of source and target"
        ) from None
    pairs = [_pair(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise ExportError(f"{path} holds no pairs; give lines of source and target")
    return pairs


def count_right(bundle: Path, pairs: list[Pair]) -> int:
    """Return how many pairs a bundle answers exactly, white space at the ends aside.

    All else is generated as the bundle does by default, on the paths that its router chooses.

    Raises:
        ExportError: The bundle has no tokenizer, or cannot take an input.
    """
    with Engine.from_bundle(bundle, verify_hashes=False) as engine:
        if engine.tokenizer is None:
            raise ExportError("the checkpoint has no tokenizer, so there are no texts to evaluate")
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


def _pair(path: Path, number: int, line: str) -> Pair:
    try:
        document = json.loads(line)
        source, target = document["source"], document["target"]
        if isinstance(source, str) and isinstance(target, str):
            return Pair(source, target)
    except (ValueError, KeyError, TypeError):
        pass
    raise ExportError(
        f'{path}, line {number}: not {{"source": "…", "target": "…"}} with two texts; mend the line'
    )
