"""Imported checkpoints in quantised precisions."""

from pathlib import Path

import pytest

from drl.export import ExportOptions, export
from drl.export.options import Precision
from tests.export.importers.reference import Spec, save_random
from tests.export.importers.test_switch import SPECS as SWITCH
from tests.export.importers.test_t5 import SPECS as T5

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.* many times slower:RuntimeWarning")


@pytest.mark.parametrize(
    ("spec", "precision"),
    [
        (T5["v1.0: ReLU, tied"], "int8"),
        (T5["v1.0: ReLU, tied"], "int8-block"),
        (T5["v1.1: gated tanh-GELU, untied"], "int4+int8-head"),
        (T5["gated SiLU, heads of odd size"], "int4"),
        (SWITCH["capacity reached"], "int8"),
        (SWITCH["capacity reached"], "int8-block"),
        (SWITCH["router bias, many experts, exact GELU"], "int4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_imported_model_is_quantised_like_one_of_ours(
    spec: Spec, precision: Precision, tmp_path: Path
) -> None:
    save_random(spec, tmp_path / "theirs")
    options = ExportOptions(precision=precision)
    report = export(tmp_path / "theirs", tmp_path / "bundle", options).quantization
    assert report is not None
    assert report.passed
    assert report.bytes < 0.6 * report.fp32_bytes
    if precision in ("int8", "int8-block"):
        assert all(path.kl_mean < 0.1 for path in report.paths)
    assert bool(report.layers) == ("num_experts" in spec.config)
