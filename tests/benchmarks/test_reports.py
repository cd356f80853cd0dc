"""What is written of results: JSON, Markdown, page, PNG."""

import dataclasses
import itertools
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from drl.benchmarks.charts import panels, ticks
from drl.benchmarks.errors import BenchmarkError
from drl.benchmarks.findings import Floor, Work, read_json, write_json
from drl.benchmarks.markdown import markdown, number
from drl.benchmarks.page import page
from drl.benchmarks.plot import check_matplotlib, plot
from drl.benchmarks.publish import main as publish
from drl.benchmarks.svg import draw
from tests.benchmarks.results_of import CELLS, made_up_run


def test_json_gives_back_what_was_written(tmp_path: Path) -> None:
    runs = [made_up_run(), made_up_run("other", compared=False)]
    write_json(runs, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == runs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no result of `drl-bench`"),
        ('{"format": "drl-bench", "format_version": 99, "runs": []}', "of another format"),
        ('{"format": "drl-bench", "format_version": 1, "runs": [{}]}', "is no result"),
    ],
)
def test_another_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        read_json(tmp_path / "a.json")


def test_the_floor_is_reading_or_computing_whichever_is_longer() -> None:
    floor = Floor(bytes_per_second=10e9, flops_per_second=100e9, int8_ops_per_second=400e9, how="")
    work = Work(60e6, 20e6, 15e6, 5e6, flops=2e8, int8_ops=8e8, experts_in_use=None)
    assert floor.milliseconds(work) == pytest.approx(10.0)
    assert floor.milliseconds(dataclasses.replace(work, flops=5e9)) == pytest.approx(52.0)
    assert floor.milliseconds(dataclasses.replace(work, int8_ops=8e9)) == pytest.approx(22.0)


def test_every_line_of_a_markdown_table_has_as_many_cells() -> None:
    text = markdown([made_up_run()])
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "5.40" not in tables[0]
    assert "| 0.75x" not in text
    assert "6.00 (1.50x, 1.35-1.65)" in text
    assert "75% (75%)" in text
    assert "Skipped: Third: not installed." in text
    assert "20.0 GB/s read, 150 GFLOP/s" in text


def test_numbers_have_three_digits() -> None:
    assert [number(x) for x in (0.1234, 9.876, 12.34, 123.4, 12345.6, 0)] == [
        "0.12",
        "9.88",
        "12.3",
        "123",
        "12346",
        "0",
    ]


@pytest.mark.parametrize("longest", [0.0, 0.003, 0.9, 1.0, 7.2, 10.0, 99.0, 1234.5])
def test_ticks_are_few_and_reach_beyond_the_longest_bar(longest: float) -> None:
    marks = ticks(longest)
    assert 2 <= len(marks) <= 6
    assert marks[0] == 0
    assert marks[-1] >= longest
    assert marks[-1] <= 2.5 * longest or longest == 0


def test_panels_hold_every_cell_once() -> None:
    made = panels(made_up_run())
    steps = [panel for panel in made if panel.title.startswith("A decoder step")]
    bars = [bar for panel in steps for group in panel.groups for bar in group.bars]
    assert len(bars) == len(CELLS)
    assert [group.label for group in steps[0].groups] == ["batch 1", "batch 8"]
    assert [bar.label for bar in steps[0].groups[0].bars] == ["fast", "full"]
    peers = [panel for panel in made if panel.title.startswith("Side by side")]
    assert [panel.title for panel in peers] == ["Side by side, greedy", "Side by side, beam 4"]
    assert [bar.label for bar in peers[0].groups[0].bars] == ["drl", "Other <fp32>"]


def test_a_drawing_keeps_to_its_box_and_texts_keep_apart() -> None:
    for panel in panels(made_up_run()):
        root = ElementTree.fromstring(draw(panel))
        _, _, width, height = (float(value) for value in root.attrib["viewBox"].split())
        for item in root.iter("rect"):
            assert float(item.attrib["x"]) + float(item.attrib["width"]) <= width
            assert float(item.attrib["y"]) + float(item.attrib["height"]) <= height
        texts = [(float(t.attrib["y"]), t.attrib["class"]) for t in root.iter("text")]
        rows = sorted({y for y, kind in texts if "axis" not in kind})
        assert min(b - a for a, b in itertools.pairwise(rows)) >= 14


class _Checker(HTMLParser):
    """Counts tags that are not closed, and collects what a page loads."""

    void = frozenset({"meta", "br", "hr", "img", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "srcset")]
        self.loads += [value or "" for name, value in attrs if name == "href" and tag == "link"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing() -> None:
    text = page([made_up_run(), made_up_run("second", compared=False)])
    checker = _Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.loads == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert "A &amp; B &lt;9&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == 6 + 4
    assert 'href="#second"' in text


def test_a_png_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot([made_up_run()], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BenchmarkError, match=r"drl\[bench\]"):
        check_matplotlib()


def test_publishing_puts_runs_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json([made_up_run("a")], tmp_path / "a.json")
    write_json([made_up_run("b", compared=False)], tmp_path / "b.json")
    monkeypatch.setattr("drl.benchmarks.writing.check_matplotlib", lambda: None)
    monkeypatch.setattr(
        "drl.benchmarks.writing.plot", lambda runs, path: path.write_text(str(len(runs)))
    )
    monkeypatch.setattr(
        "drl.benchmarks.publish.plot_peers", lambda run, path: path.write_text(run.name)
    )
    files = [str(tmp_path / name) for name in ("a.json", "b.json", "all")]
    done = CliRunner().invoke(publish, files)
    assert done.exit_code == 0, done.output
    assert [run.name for run in read_json(tmp_path / "all.json")] == ["a", "b"]
    assert (tmp_path / "all.png").read_text() == "2"
    assert (tmp_path / "all-peers.png").read_text() == "a"
    assert (tmp_path / "all.md").read_text().startswith("## Goals")
    assert {file.name for file in tmp_path.glob("all.*")} == {
        "all.json",
        "all.md",
        "all.html",
        "all.png",
    }
