"""Diverse beam search finds what transformers 4 found."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.export.importers.reference import OTHER_PYTHON, other_python
from tests.generation import group_search
from tests.generation.comparison import TOLERANCE
from tests.generation.subjects import Subjects
from tests.generation.transformers_search import LIMIT

CONFIGS: list[dict[str, Any]] = [
    {"num_beam_groups": groups, "diversity_penalty": penalty, **more}
    for groups in (2, 4)
    for penalty in (0.3, 1.0)
    for more in (
        {},
        {"length_penalty": 2.0, "early_stopping": True},
        {"length_penalty": 0.0},
        {"repetition_penalty": 1.4, "min_length": 6},
        {"no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.3},
    )
]


@pytest.mark.skipif(other_python() is None, reason=f"{OTHER_PYTHON} names no Python")
@pytest.mark.parametrize("name", ["umt5", "bart"])
def test_group_beams(subjects: Subjects, name: str, tmp_path: Path) -> None:
    subject = subjects[name]
    pad = subject.model.config.pad_token_id
    cases = [
        # a group that is done goes on as padding there, and would keep others from saying that
        (source, {"num_beams": 4, "max_new_tokens": LIMIT, "suppress_tokens": [pad]} | config)
        for config in CONFIGS
        for source in subject.sources[1:4]
    ]
    expected = _by_version_4(subject.checkpoint, cases, tmp_path)
    for (source, options), beams in zip(cases, expected, strict=True):
        (best,) = subject.engine.generate([source], **options, num_return_sequences=4)
        found = [best, *best.alternatives]
        assert [result.tokens for result in found] == [tokens for tokens, _ in beams], options
        scores = [score for _, score in beams]
        assert [result.score for result in found] == pytest.approx(scores, TOLERANCE, TOLERANCE)


def _by_version_4(checkpoint: Path, cases: list[Any], folder: Path) -> Any:
    given, result = folder / "cases.json", folder / "result.json"
    given.write_text(json.dumps(cases), encoding="utf-8")
    script = [str(other_python()), "-W", "ignore", str(group_search.__file__)]
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*script, str(checkpoint), str(given), str(result)],
        env=alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return json.loads(result.read_text(encoding="utf-8"))
