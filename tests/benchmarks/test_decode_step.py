"""Times per step beside Transformers: what works is timed, the rest is named."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from drl.benchmarks.gpu import decode_step
from drl.benchmarks.gpu.decode_step import main
from drl.runtime.errors import BackendError


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_step, "_NEW", 4)


def test_what_works_is_timed_and_the_rest_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    told = tmp_path / "steps.json"
    arguments = [str(tiny_bundle), "--devices", "cpu,nothing", "--batch", "1,2", "--source", "5"]
    done = CliRunner().invoke(main, [*arguments, "--repeats", "1", "--json", str(told)])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("| ms per step | batch 1 | batch 2 |")
    assert "| drl cpu |" in done.stdout
    assert "SKIPPED drl nothing: there is no device 'nothing'" in done.stderr
    document = json.loads(told.read_text())
    assert [(each["engine"], each["batch"]) for each in document["results"]] == [
        ("drl cpu", 1),
        ("drl cpu", 2),
    ]
    assert list(document["skipped"]) == ["drl nothing"]


def test_an_engine_that_fails_in_a_step_loses_no_other_s_times(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = decode_step.step_milliseconds

    def failing(generate: object, sources: list[list[int]], repeats: int) -> float:
        if len(sources) == 2:
            raise BackendError("the GPU has no memory left")
        return timed(generate, sources, repeats)  # type: ignore[arg-type]

    monkeypatch.setattr(decode_step, "step_milliseconds", failing)
    arguments = [str(tiny_bundle), "--devices", "cpu", "--batch", "1,2", "--repeats", "1"]
    done = CliRunner().invoke(main, [*arguments, "--source", "5"])
    assert done.exit_code == 0, done.output
    assert "| drl cpu |" in done.stdout
    assert "SKIPPED drl cpu: the GPU has no memory left" in done.stderr


def test_nothing_that_works_is_an_error(tiny_bundle: Path) -> None:
    done = CliRunner().invoke(main, [str(tiny_bundle), "--devices", "nothing"])
    assert done.exit_code == 1
    assert "none of the engines works here" in done.stderr
