"""The driver of peers, with engines that are made up."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from drl.benchmarks.cells import Cell
from drl.benchmarks.errors import BenchmarkError
from drl.benchmarks.measure import Settings
from drl.benchmarks.peers.comparison import agree, check_comparable, compare
from drl.benchmarks.peers.process import PeerProcess
from drl.benchmarks.peers.registry import PEERS, PeerSpec, install_lines
from drl.runtime.bundle import Bundle

FAKE = Path(__file__).with_name("fake_peer.py")
CELLS = [Cell(2, 6, 4, "full"), Cell(1, 6, 4, "full", 2)]


def fake(variant: str, environment: str = "env") -> PeerSpec:
    return PeerSpec(f"fake {variant}", FAKE, variant, "fp32", environment, ("nothing",))


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    """A folder with one environment, whose Python is this one."""
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def test_engines_take_turns_and_are_compared(tiny_bundle: Path, environments: Path) -> None:
    peers = [fake(name) for name in ("slow", "unfit", "dies")] + [fake("absent", "elsewhere")]
    found = compare(
        environments,
        [Bundle.load(tiny_bundle)],
        environments,
        CELLS,
        Settings(3),
        1,
        peers=peers,
        pause=0.0,
        turn=0.1,
    )
    own = f"drl {tiny_bundle.name}"
    assert [(peer.name, peer.is_ours) for peer in found.peers] == [
        (own, True),
        ("fake slow", False),
    ]
    assert found.peers[1].version == "7"
    assert all(peer.peak_bytes > 1_000_000 for peer in found.peers)
    assert [(each.peer, each.cell) for each in found.cells] == [
        (name, cell) for name in (own, "fake slow") for cell in CELLS
    ]
    ours, slow = found.cells[0], found.cells[2]
    assert (ours.ratio, ours.ratio_p10, ours.ratio_p90) == (1.0, 1.0, 1.0)
    assert slow.token_ms >= 50.0
    assert len(slow.rounds_ms) == 3
    assert min(slow.rounds_ms) >= 50.0 * CELLS[0].new
    assert slow.ratio_p10 <= slow.ratio <= slow.ratio_p90
    assert slow.agreement == 0.0
    assert found.cells[3].agreement is None  # beams
    unfit, absent, dies = found.skipped
    assert unfit == "fake unfit: ValueError: no such model"
    assert "make bench-peers" in absent
    assert "pip install torch nothing" in absent
    assert dies == "fake dies: its process ended: out of luck"


def test_the_call_after_waiting_for_others_does_not_count(
    tiny_bundle: Path, environments: Path
) -> None:
    found = compare(
        environments,
        [Bundle.load(tiny_bundle)],
        environments,
        CELLS[:1],
        Settings(2),
        1,
        peers=[fake("dozes")],
        pause=0.1,
        turn=0.1,
    )
    assert max(found.cells[1].rounds_ms) < 200


def test_only_one_path_is_compared(tiny_bundle: Path, environments: Path) -> None:
    cells = [Cell(1, 6, 2, "fast"), Cell(1, 6, 2, "full")]
    found = compare(
        environments,
        [Bundle.load(tiny_bundle)],
        environments,
        cells,
        Settings(1),
        1,
        peers=(),
        pause=0.0,
        turn=0.1,
    )
    assert [each.cell for each in found.cells] == cells[1:]


def test_bundles_of_ours_take_turns_too(
    tiny_bundle: Path, environments: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    bundles = [Bundle.load(folder) for folder in (tiny_bundle, copy)]
    cells = [Cell(1, 6, 2, "fast")]
    found = compare(
        environments, bundles, environments, cells, Settings(1), 1, peers=(), pause=0.0, turn=0.1
    )
    assert [(peer.name, peer.is_ours) for peer in found.peers] == [
        (f"drl {tiny_bundle.name}", True),
        ("drl copy", True),
    ]
    assert found.cells[1].agreement is not None  # the dearest path against the path of the cells


def test_bundles_that_cannot_be_told_apart_or_read_the_same_are_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    check_comparable([bundle], CELLS)
    with pytest.raises(BenchmarkError, match="two bundles are called"):
        check_comparable([bundle, bundle], CELLS)
    limits = replace(bundle.manifest.limits, vocab_size=7)
    other = Bundle(tiny_bundle, replace(bundle.manifest, limits=limits))
    with pytest.raises(BenchmarkError, match="a vocabulary of 7 and"):
        check_comparable([bundle, other], CELLS)
    with pytest.raises(BenchmarkError, match="give smaller --source and --new"):
        check_comparable([bundle, bundle], [Cell(1, 10_000, 4, "full")])


def test_an_engine_that_hangs_is_ended() -> None:
    process = PeerProcess(Path(sys.executable), FAKE, "hangs", 1, limit=1.0)
    with process, pytest.raises(BenchmarkError, match="generate took longer than 1 seconds"):
        process.generate([[1]], 2, 1)


def test_agreement_is_of_whole_results_and_of_beginnings() -> None:
    assert agree([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 3, 4], [5, 6, 9, 9]]) == (0.5, 0.75)
    assert agree([[1, 2]], [[1, 2, 3, 4]]) == (0.0, 0.5)


def test_every_engine_has_a_module_and_an_environment() -> None:
    assert all(peer.file.is_file() for peer in PEERS)
    assert {name for name, _ in install_lines()} == {
        "transformers",
        "optimum",
        "ort-beam-search",
        "ctranslate2",
    }
    assert [peer.precision for peer in PEERS].count("int8") == 2
