"""The cost model: fitting, writing, reading."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from drl.benchmarks.calibration import calibration_cells, fit
from drl.benchmarks.cells import Cell
from drl.benchmarks.cli import main
from drl.benchmarks.findings import CellResult
from drl.runtime import Engine
from drl.runtime.bundle import Bundle
from drl.runtime.costs import CostModel
from tests.benchmarks.results_of import cell_result
from tests.runtime.backends.fake_device import fake_backend


def _result(source: int, new: int, total_ms: float) -> CellResult:
    result = cell_result(Cell(1, source, new, "full"))
    return CellResult(**{**vars(result), "total_ms": total_ms})


def test_a_plane_is_found_again() -> None:
    results = [
        _result(source, new, 3.0 + 0.25 * source + 1.5 * new)
        for source in (4, 16, 64)
        for new in (2, 8, 32)
    ]
    found = fit(results)
    coefficients = (found.alpha_ms, found.beta_ms, found.gamma_ms)
    assert coefficients == pytest.approx((3.0, 0.25, 1.5))
    assert found.residual_ms == pytest.approx(0.0, abs=1e-9)
    assert found.worst == pytest.approx(0.0, abs=1e-9)
    assert found.cells == 9


def test_what_does_not_fit_is_reported() -> None:
    results = [_result(4, 2, 10.0), _result(16, 2, 10.0), _result(4, 8, 10.0), _result(16, 8, 20.0)]
    found = fit(results)
    assert found.residual_ms > 1.0
    assert 0.05 < found.worst < 1.0


def test_lengths_stay_within_the_model(tiny_bundle: Path) -> None:
    cells = calibration_cells(Bundle.load(tiny_bundle))
    assert {cell.source for cell in cells} == {4, 16, 48}
    assert {cell.path for cell in cells} == {"fast", "balanced", "full"}


def test_a_calibrated_bundle_knows_what_its_paths_cost(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    done = CliRunner().invoke(
        main, [str(bundle), "--calibrate", "--repeats", "1", "--threads", "1"]
    )
    assert done.exit_code == 0, done.output
    assert "gamma ms per new token" in done.stdout
    costs = CostModel.load(bundle)
    assert (costs.device, costs.threads) == ("cpu", 1)
    assert list(costs.paths) == ["fast", "balanced", "full"]
    document = json.loads((bundle / "costs.json").read_text())
    assert {"date", "machine", "versions", "batch"} <= document.keys()
    assert document["paths"]["full"]["cells"] == 9
    Engine.from_bundle(bundle).close()  # a bundle with costs is as good as before


def test_a_calibration_says_which_kind_of_device_it_is_of(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.setattr(
        "drl.benchmarks.calibration.open_backend", lambda bundle, *_: fake_backend(bundle)
    )
    arguments = [str(bundle), "--calibrate", "--repeats", "1", "--device", "cuda:1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert CostModel.load(bundle, "cuda").threads == 1
