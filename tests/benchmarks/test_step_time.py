from pathlib import Path

import pytest
from click.testing import CliRunner

from drl.benchmarks.step_time import main
from tests.runtime.backends.fake_device import fake_backend


def test_every_path_is_timed_against_the_longest(tiny_bundle: Path) -> None:
    done = CliRunner().invoke(main, [str(tiny_bundle), "--repeats", "5", "--rows", "2"])
    assert done.exit_code == 0
    *_, fast, balanced, full = done.stdout.splitlines()
    assert fast.split()[:2] == ["fast", "2"]
    assert balanced.split()[:2] == ["balanced", "3"]
    assert full.split()[:2] == ["full", "4"]
    assert full.endswith("100%")


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path / "none")])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: there is no bundle at")


def test_a_device_is_timed_as_the_cpu_is(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "drl.benchmarks.step_time.open_backend", lambda bundle, *_: fake_backend(bundle)
    )
    done = CliRunner().invoke(main, [str(tiny_bundle), "--device", "cuda", "--repeats", "2"])
    assert done.exit_code == 0, done.output
    assert "Fake GPU (cuda:0)" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("100%")
