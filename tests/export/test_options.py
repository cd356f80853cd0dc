from pathlib import Path

import pytest

from drl.export import ExportOptions
from drl.runtime.errors import ExportError


@pytest.mark.parametrize("precision", ["int8", "int8-block", "int4", "int4+int8-head"])
def test_a_portable_bundle_is_fp32(precision: str) -> None:
    with pytest.raises(ExportError, match=f"no precision {precision.replace('+', '.')}.*--target"):
        ExportOptions(target="portable", precision=precision)  # type: ignore[arg-type]
    assert ExportOptions(target="portable").precision == "fp32"
    assert ExportOptions(precision=precision).quantized  # type: ignore[arg-type]


def test_a_cache_of_int8_is_for_quantised_bundles() -> None:
    with pytest.raises(ExportError, match=r"--kv-cache int8 is for quantised .*--precision int8"):
        ExportOptions(kv_cache="int8")
    for precision in ("int8", "int8-block", "int4", "int4+int8-head"):
        assert ExportOptions(precision=precision, kv_cache="int8").kv_cache == "int8"  # type: ignore[arg-type]


def test_an_evaluation_needs_a_quantised_bundle_that_is_verified() -> None:
    pairs = Path("pairs.jsonl")
    with pytest.raises(ExportError, match="give --precision int8"):
        ExportOptions(evaluate=pairs)
    with pytest.raises(ExportError, match="--no-verify"):
        ExportOptions(precision="int8", evaluate=pairs, verify=False)
    assert ExportOptions(precision="int8", evaluate=pairs).evaluate == pairs
