"""docs/tensorrt-form.md says what the lowered graphs are."""

import re
from pathlib import Path

import onnx_ir as ir
import pytest

from drl.export import passes
from drl.export.tensorrt.lowering import LoweredGraph, LoweringOptions, lower_bundle
from drl.runtime.bundle import Bundle
from tests.documents import ROOT, code, tables
from tests.models import TINY

PAGE = ROOT / "docs" / "tensorrt-form.md"
OPTIONS = LoweringOptions(capacity=24, candidates=10)
SIZES = {"d": TINY.d_model, "P": 3, "N": 2, "h": 16, "C": 24, "V": TINY.vocab_size, "c": 10, "k": 2}
WORDS = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "F"}


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoweredGraph]:
    folder = tmp_path_factory.mktemp("lowered")
    lowered = lower_bundle(Bundle.load(tiny_bundle), OPTIONS, folder)
    return {graph.name: graph for graph in lowered}


def _rows(values: object, kind: str) -> set[tuple[str, str, str, str]]:
    found = set()
    for value in values:  # type: ignore[attr-defined]
        word = WORDS.get(value.dtype) or value.dtype.name.lower()
        dims = ", ".join(str(dim) for dim in value.shape)
        found.add((re.sub(r"\.\d+$", ".{i}", value.name), kind, word, f"[{dims}]"))
    return found


@pytest.mark.parametrize("kind", ["encoder", "bridge", "decoder"])
def test_inputs_and_outputs_are_those_of_the_graphs(
    kind: str, graphs: dict[str, LoweredGraph]
) -> None:
    graph = graphs[kind if kind == "encoder" else f"{kind}.full"].model.graph
    (table,) = [table for table in tables(PAGE) if table.heading.split(".")[0] == kind]
    documented = set()
    for row in table.rows:
        dims = code(row[3]).strip("[]").split(", ")
        shape = ", ".join(str(SIZES.get(dim, dim)) for dim in dims)
        documented.add((code(row[0]), row[1], row[2], f"[{shape}]"))
    assert documented == _rows(graph.inputs, "input") | _rows(graph.outputs, "output")


def test_every_pass_that_is_named_exists() -> None:
    (table,) = [table for table in tables(PAGE) if table.heading == "Passes"]
    named = {code(row[0]) for row in table.rows}
    assert named <= set(passes.__all__)
    others = {"AppendFunctionBodies", "LowerCachedAttention"}
    others |= {"ForceRoutes", "TapLayers"}
    assert named == set(passes.__all__) - others
