"""Goals held against results that are made up."""

from dataclasses import replace

from drl.benchmarks.cells import Cell
from drl.benchmarks.findings import Comparison, PeerCell, Run
from drl.benchmarks.targets import GOALS, Verdict, judge, target_rows
from tests.benchmarks.results_of import made_up_run

STEP = Cell(1, 64, 64, "full")


def peer(name: str, *rounds_ms: float, cell: Cell = STEP) -> PeerCell:
    return PeerCell(name, cell, 1.0, rounds_ms, 1.0, 1.0, 1.0, None, None)


def compared(name: str, *cells: PeerCell) -> Run:
    return replace(made_up_run(name), comparison=Comparison((), cells, (), 3))


def verdict(what: str, place: str, *runs: Run) -> Verdict:
    (found,) = (v for v in judge(runs) if v.goal.what == what and v.goal.place == place)
    return found


def test_a_speedup_is_the_median_of_the_rounds_ratios() -> None:
    run = compared(
        "t5-small-int8",
        peer("drl t5-small-int8", 1.0, 2.0, 4.0),
        peer("CTranslate2 int8", 3.0, 4.0, 20.0),
        peer("CTranslate2 int8", 9.0, 9.0, 9.0, cell=replace(STEP, batch=8)),
    )
    found = verdict("t5-small int8 against CTranslate2 int8", "greedy, batch 1", run)
    assert found.found == 3.0
    assert found.met
    other = verdict("t5-small int8 against CTranslate2 int8", "greedy, batch 8", run)
    assert (other.found, other.met) == (None, None)


def test_the_faster_of_several_rivals_counts() -> None:
    run = compared(
        "t5-small-int8",
        peer("drl t5-small", 2.0),
        peer("CTranslate2 fp32", 6.0),
        peer("Optimum ONNX fp32", 2.1),
    )
    what = "t5-small fp32 against the fastest other engine in fp32"
    found = verdict(what, "greedy, batch 1", run)
    assert found.found == 1.05
    assert found.met is False


def test_where_less_is_better_the_ratio_is_ours_over_theirs() -> None:
    run = compared("any", peer("drl switch-small-int8", 2.2), peer("drl t5-small-int8", 2.0))
    found = verdict("switch-small int8, times t5-small int8", "greedy, batch 1", run)
    assert found.found == 1.1
    assert found.goal.wanted == "≤ 1.15x"
    assert found.met


def test_load_and_bandwidth_come_from_the_bundles_own_run() -> None:
    run = made_up_run("t5-small-int8")
    assert run.fresh is not None
    load = verdict("t5-small int8, import and load", "", run)
    assert load.found == (run.fresh.import_ms + run.fresh.load_ms) / 1e3
    resident = verdict("t5-small int8, resident beside its weights", "", run)
    assert resident.found == 250 - 40


def test_the_table_has_a_line_for_every_goal() -> None:
    rows = target_rows([])
    assert len(rows) == 1 + len(GOALS)
    assert {row[3] for row in rows[1:]} == {"not measured"}
