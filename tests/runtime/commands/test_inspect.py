"""`drl-inspect`."""

import json
from pathlib import Path

from click.testing import CliRunner

from drl.runtime.commands.common import file_size
from drl.runtime.commands.inspect import main


def test_everything_of_a_bundle_is_shown(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(main, [str(tiny_bundle)])
    assert result.exit_code == 0, result.output
    for part in (
        "ort-cpu, fp32",
        f"weights          {file_size((tiny_bundle / 'weights.bin').stat().st_size)} of fp32",
        "balanced  0.75  0 2 3",
        "auto is chosen by a linear router",
        "com.microsoft.GroupQueryAttention 4",
        "drl.RoutedFFN 2",
        "cross_k.{1,2}",
        "[B, 2, K.i, 16]",
        "weights.bin",
        "max_logit_difference",
        "d_model",
    ):
        assert part in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 110


def test_a_bundle_without_routing_is_shown(dense_bundle: Path) -> None:
    result = CliRunner().invoke(main, [str(dense_bundle)])
    assert result.exit_code == 0
    assert "the dearest path within the budget" in result.stdout


def test_json_is_the_manifest(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(main, [str(tiny_bundle), "--json"])
    assert json.loads(result.stdout) == json.loads((tiny_bundle / "bundle.json").read_text())


def test_what_is_no_bundle_is_one_line_and_status_1(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path / "missing")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no bundle at")
    assert len(result.stderr.splitlines()) == 1
