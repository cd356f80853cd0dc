from pathlib import Path

from click.testing import CliRunner

from drl.benchmarks.step_time import main


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
