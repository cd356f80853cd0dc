from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import pytest

from drl.export.passes import RankLogits
from drl.export.passes.tracing import PRECISION
from drl.runtime.bundle import Bundle
from tests.export.passes.one_node import run

FLOAT = ir.DataType.FLOAT
VOCABULARY, WIDTH = 12, 8


def _head(*, factor: float | None, biased: bool) -> ir.Model:
    """States to logits and normalisers, the way the emitter makes them."""
    random = np.random.default_rng(0)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="decoder")
    builder = onnxscript.GraphBuilder(graph)
    op = builder.op
    states = builder.input("states", FLOAT, ["B", "T", WIDTH])
    shape = (VOCABULARY, WIDTH)
    table = random.standard_normal(shape).astype(np.float32)
    weight = builder.initializer(ir.tensor(table, name="head.weight"))
    given = [op.Reshape(states, [-1, WIDTH]), weight]
    if biased:
        bias = random.standard_normal(VOCABULARY).astype(np.float32)
        given.append(builder.initializer(ir.tensor(bias, name="head_bias")))
    attributes: dict[str, Any] = {"transB": 1}
    if factor is not None:
        attributes["alpha"] = factor
    logits = op.Gemm(*given, **attributes)
    likeliest = op.ReduceMax(op.LogSoftmax(logits, axis=-1), [-1], keepdims=0)
    shifts = op.Sub(op.ReduceMax(logits, [-1], keepdims=0), likeliest)
    places = op.Shape(states, end=2)
    whole = op.Reshape(logits, op.Concat(places, [VOCABULARY], axis=0))
    for name, value, dims in (
        ("logits", whole, ["B", "T", VOCABULARY]),
        ("normalisers", op.Reshape(shifts, places), ["B", "T"]),
    ):
        value.type, value.shape = ir.TensorType(FLOAT), ir.Shape(dims)
        builder.add_output(value, name)
    return ir.Model(graph, ir_version=11)


FEEDS = {"states": np.random.default_rng(1).standard_normal((3, 2, WIDTH)).astype(np.float32)}


@pytest.mark.parametrize("candidates", [1, 5, VOCABULARY])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("factor", [None, 0.25])
def test_the_largest_logits_are_told_and_the_others_stay(
    factor: float | None, biased: bool, candidates: int
) -> None:
    before = run(_head(factor=factor, biased=biased), FEEDS)
    model = _head(factor=factor, biased=biased)
    assert RankLogits(candidates)(model).modified
    names = [value.name for value in model.graph.outputs]
    assert names == ["logits", "normalisers", "top_values", "top_ids"]
    after = run(model, FEEDS)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, atol=1e-5)
    order = np.argsort(-after["logits"], axis=-1, kind="stable")[..., :candidates]
    np.testing.assert_array_equal(after["top_ids"], order)
    assert after["top_ids"].dtype == np.int32
    ranked = np.take_along_axis(after["logits"], order, axis=-1)
    np.testing.assert_array_equal(after["top_values"], ranked)


def test_the_factor_comes_before_the_product_and_all_behind_it_is_precise() -> None:
    model = _head(factor=0.25, biased=True)
    RankLogits(4)(model)
    (product,) = [node for node in model.graph if node.op_type == "Gemm"]
    assert "alpha" not in product.attributes
    assert len(product.inputs) == 2
    assert PRECISION not in product.metadata_props
    behind = list(model.graph)[list(model.graph).index(product) + 1 :]
    assert "TopK" in [node.op_type for node in behind]
    for node in behind:
        if node.op_type not in ("Shape", "Concat"):
            assert node.metadata_props.get(PRECISION) == "float32", node.op_type


def test_it_ranks_once(tiny_bundle: Path) -> None:
    model = _head(factor=None, biased=False)
    RankLogits(4)(model)
    with pytest.raises(ir.passes.PreconditionError, match="no `top_values` yet"):
        RankLogits(4)(model)
    encoder = ir.load(Bundle.load(tiny_bundle, verify_hashes=False).canonical_file("encoder"))
    with pytest.raises(ir.passes.PreconditionError, match="needs `logits`"):
        RankLogits(4)(encoder)


def test_more_candidates_than_tokens_are_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="no 13 candidates"):
        RankLogits(VOCABULARY + 1)(_head(factor=None, biased=False))
