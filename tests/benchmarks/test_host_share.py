from pathlib import Path

from click.testing import CliRunner

from drl.benchmarks.host_share import WAYS, main, measure
from tests.runtime.toy import ToyBackend, toy_bundle


def test_every_way_is_timed(tiny_bundle: Path) -> None:
    arguments = [str(tiny_bundle), "--repeats", "1", "--new", "4", "--source", "8"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()[2:]
    assert [line.split("  ")[0] for line in lines] == [way.name for way in WAYS]
    assert all(line.endswith("%") for line in lines)


def test_the_graph_is_not_the_hosts_share(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    costs = measure(bundle, ToyBackend(bundle.manifest), source=8, new=4, repeats=2)
    # The toy decodes row by row in Python, which takes longer than choosing a token.
    assert all(0 < cost.host < cost.step for cost in costs)
    assert costs[0].host < 0.9 * costs[0].step


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path / "none")])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: there is no bundle at")
