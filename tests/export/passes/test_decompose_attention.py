from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import pytest

from drl.export.passes import DecomposeAttention, TypedPrecision
from tests.export.passes.one_node import run

FLOAT = ir.DataType.FLOAT
ROWS, QUERIES, KEYS = 2, 3, 5


def _model(width: int, kv_heads: int, group: int, mask: str, *, flat: bool) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="graph")
    builder = onnxscript.GraphBuilder(graph)
    heads = kv_heads * group
    if flat:
        shapes = [["B", "L", heads * width], *[["B", "K", kv_heads * width]] * 2]
    else:
        shapes = [["B", heads, "L", width], *[["B", kv_heads, "K", width]] * 2]
    given = [builder.input(name, FLOAT, dims) for name, dims in zip("qkv", shapes, strict=True)]
    if mask:
        kind = ir.DataType.BOOL if mask == "bool" else FLOAT
        given.append(builder.input("mask", kind, ["B", 1, "L", "K"]))
    counts: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": kv_heads} if flat else {}
    builder.add_output(builder.op.Attention(*given, scale=0.4, **counts), "y")
    return ir.Model(graph, ir_version=11)


def _feeds(width: int, kv_heads: int, group: int, mask: str, *, flat: bool) -> dict[str, Any]:
    random = np.random.default_rng(width)

    def draw(length: int, heads: int) -> np.ndarray:
        shape = (ROWS, length, heads * width) if flat else (ROWS, heads, length, width)
        return random.standard_normal(shape).astype(np.float32)

    feeds = {"q": draw(QUERIES, kv_heads * group), "k": draw(KEYS, kv_heads)}
    feeds["v"] = draw(KEYS, kv_heads)
    visible = random.random((ROWS, 1, QUERIES, KEYS)) < 0.6
    visible[..., 0] = True
    if mask:
        feeds["mask"] = visible if mask == "bool" else np.where(visible, 0.5, -1e4).astype("f4")
    return feeds


@pytest.mark.parametrize("mask", ["", "bool", "float"])
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (3, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("width", [4, 20])
@pytest.mark.parametrize("flat", [False, True], ids=["heads apart", "heads side by side"])
def test_decomposed_attention_is_attention(
    flat: bool, width: int, kv_heads: int, group: int, mask: str
) -> None:
    form = width, kv_heads, group, mask
    feeds = _feeds(*form, flat=flat)
    expected = run(_model(*form, flat=flat), feeds)["y"]
    model = _model(*form, flat=flat)
    assert DecomposeAttention()(model).modified
    assert "Attention" not in [node.op_type for node in model.graph]
    np.testing.assert_allclose(run(model, feeds)["y"], expected, atol=1e-5)
    assert not DecomposeAttention()(model).modified


@pytest.mark.parametrize(
    ("width", "fused"), [(8, False), (12, False), (16, True), (40, True), (256, True), (264, False)]
)
@pytest.mark.parametrize("flat", [False, True])
def test_only_heads_without_a_kernel_are_decomposed(width: int, fused: bool, flat: bool) -> None:
    assert DecomposeAttention()(_model(width, 2, 2, "", flat=flat)).modified is not fused


def test_the_softmax_is_in_float32() -> None:
    model = _model(4, 2, 2, "bool", flat=False)
    DecomposeAttention()(model)
    TypedPrecision(ir.DataType.FLOAT16)(model)
    for node in model.graph:
        kinds = {value.dtype for value in node.outputs}
        if node.op_type in ("Softmax", "Where"):
            assert kinds == {FLOAT}
        if node.op_type == "MatMul":
            assert kinds == {ir.DataType.FLOAT16}


def test_attention_that_does_more_is_refused() -> None:
    model = _model(4, 2, 2, "", flat=False)
    model.graph[0].attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    with pytest.raises(ir.passes.PreconditionError, match="more than masked attention"):
        DecomposeAttention()(model)
