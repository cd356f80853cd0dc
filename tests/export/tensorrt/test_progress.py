"""What a build shows while it runs."""

import pytest

from drl.export.tensorrt.events import Phases
from drl.export.tensorrt.progress import Lines


def test_without_a_terminal_there_is_a_line_for_each_thing_that_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines(moving=False)
    lines.stage("lowering the graphs")
    lines.engine("encoder (8.9)", "graph changed")
    lines.share("encoder (8.9)", "Timing tactics", 0.5)
    lines.note("the timing cache is damaged")
    lines.built("encoder (8.9)", 1.25)
    lines.finish()
    out, err = capsys.readouterr()
    assert out == ""
    first, note, built = err.splitlines()
    assert first.split() == ["lowering", "the", "graphs", "0.0", "s"]
    assert note == "warning: the timing cache is damaged"
    assert built.split() == ["encoder", "(8.9)", "1.2", "s", "graph", "changed"]


def test_on_a_terminal_one_line_moves(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(moving=True)
    lines.engine("encoder (8.9)", "new")
    lines.share("encoder (8.9)", "Timing tactics", 0.5)
    lines.share("encoder (8.9)", "not shown so soon", 0.6)
    lines.built("encoder (8.9)", 1.0)
    lines.finish()
    err = capsys.readouterr().err
    shown = [part for part in err.split("\r\x1b[K") if part]
    assert shown[0] == "encoder (8.9) …"
    assert shown[1] == "encoder (8.9)  " + "█" * 10 + "·" * 10 + "  50%  Timing tactics"
    assert shown[2].rstrip("\n").split() == ["encoder", "(8.9)", "1.0", "s", "new"]
    assert err.count("\n") == 1


def test_a_long_line_does_not_wrap(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    Lines(moving=True).share("decoder.balanced (12.0)", "Computing profile costs", 0.25)
    (shown,) = [part for part in capsys.readouterr().err.split("\r\x1b[K") if part]
    assert len(shown) == 19


def test_a_stage_that_fails_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(moving=False)
    lines.stage("lowering the graphs")
    lines.finish(failed=True)
    assert capsys.readouterr().err.split() == ["lowering", "the", "graphs", "failed"]


def test_phases_within_phases_make_one_share() -> None:
    phases = Phases()
    assert (phases.current, phases.share) == ("", 0.0)
    phases.start("build", 4)
    phases.step("build", 0)
    assert (phases.current, phases.share) == ("build", 0.25)
    phases.start("tactics", 2)
    phases.step("tactics", 0)
    assert (phases.current, phases.share) == ("tactics", 0.375)
    phases.finish("tactics")
    phases.step("build", 1)
    assert (phases.current, phases.share) == ("build", 0.5)


def test_a_share_never_goes_back() -> None:
    phases = Phases()
    phases.start("first", 1)
    phases.step("first", 0)
    phases.finish("first")
    phases.share  # noqa: B018  # read while it was full
    phases.start("second", 2)
    assert phases.share <= 1.0
    before = phases.share
    phases.start("third", 10)
    assert phases.share >= before


def test_a_step_of_an_unknown_phase_is_left_alone() -> None:
    phases = Phases()
    phases.step("ghost", 3)
    phases.finish("ghost")
    assert phases.share == 0.0
