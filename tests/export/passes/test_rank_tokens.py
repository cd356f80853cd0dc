import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript
import pytest

from drl.export.passes import AppendFunctionBodies, RankTokens
from drl.plugins.ops import HEAD

V, D = 61, 12
FLOAT, INT32, INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64
WEIGHT = np.random.default_rng(0).standard_normal((V, D)).astype(np.float32)
BIAS = np.random.default_rng(1).standard_normal(V).astype(np.float32)


def _model(*, biased: bool, alpha: float = 0.5, product: str = "Gemm") -> ir.Model:
    """A head as the emitter of fp32 graphs makes it, over states that are a graph input."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24, "drl": 1}, name="decoder")
    builder = onnxscript.GraphBuilder(graph)
    op = builder.op
    builder.input("tokens", INT64, ["B", "T"])
    builder.input("new_lengths", INT32, ["B"])
    x = builder.input("x", FLOAT, ["B", "T", D])
    weight = builder.initializer(ir.tensor(WEIGHT, name="weight"))
    bias = [builder.initializer(ir.tensor(BIAS, name="bias"))] if biased else []
    states = op.Mul(x, 2.0)
    builder.push_module("head")
    rows = op.Reshape(states, [-1, D])
    if product == "Gemm":
        logits = op.Gemm(rows, weight, *bias, transB=1, alpha=alpha)
    else:
        logits = op.MatMul(rows, op.Transpose(weight, perm=[1, 0]))
    likeliest = op.ReduceMax(op.LogSoftmax(logits, axis=-1), [-1], keepdims=0)
    shifts = op.Sub(op.ReduceMax(logits, [-1], keepdims=0), likeliest)
    places = op.Shape(states, start=0, end=2)
    results = {
        "logits": (op.Reshape(logits, op.Concat(places, [V], axis=0)), ["B", "T", V]),
        "normalisers": (op.Reshape(shifts, places), ["B", "T"]),
    }
    for name, (value, dims) in results.items():
        value.type, value.shape = ir.TensorType(FLOAT), ir.Shape(dims)
        builder.add_output(value, name)
    builder.pop_module()
    for node in graph:
        node.metadata_props.clear()
        node.metadata_props["namespace"] = "head"
    return ir.Model(graph, ir_version=11)


def _run(model: ir.Model, x: np.ndarray, candidates: int | None = None) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    feeds = {
        "tokens": np.zeros(x.shape[:2], np.int64),
        "new_lengths": np.ones(len(x), np.int32),
        "x": x,
    }
    if candidates is not None:
        feeds["candidates"] = np.array([candidates])
    names = [output.name for output in session.get_outputs()]
    found = {item.name for item in session.get_inputs()}
    feeds = {name: array for name, array in feeds.items() if name in found}
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("candidates", [0, 1, 7, V])
def test_a_ranking_head_tells_the_largest_of_the_same_logits(biased: bool, candidates: int) -> None:
    x = np.random.default_rng(2).standard_normal((2, 3, D)).astype(np.float32)
    before = _run(_model(biased=biased), x)
    ranking = AppendFunctionBodies()(RankTokens()(_model(biased=biased)).model).model
    after = _run(ranking, x, candidates)
    np.testing.assert_allclose(after["normalisers"], before["normalisers"], rtol=1e-5)
    logits = before["logits"]
    if candidates:
        assert after["logits"].shape == (2, 3, 0)
    else:
        np.testing.assert_allclose(after["logits"], logits, rtol=1e-5, atol=1e-5)
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :candidates]
    np.testing.assert_array_equal(after["top_ids"], order)
    values = np.take_along_axis(logits, order, axis=-1)
    np.testing.assert_allclose(after["top_values"], values, rtol=1e-5, atol=1e-5)


def test_inputs_outputs_and_nodes_are_those_of_a_ranking_decoder() -> None:
    model = RankTokens()(_model(biased=True)).model
    graph = model.graph
    assert [value.name for value in graph.inputs] == ["tokens", "new_lengths", "candidates", "x"]
    found = {
        str(value.name): (value.dtype, [getattr(dim, "value", dim) for dim in value.shape or ()])
        for value in graph.outputs
    }
    assert found == {
        "logits": (FLOAT, ["B", "T", f"{V} or 0"]),
        "normalisers": (FLOAT, ["B", "T"]),
        "top_values": (FLOAT, ["B", "T", "c"]),
        "top_ids": (INT32, ["B", "T", "c"]),
    }
    assert list(found) == ["logits", "normalisers", "top_values", "top_ids"]
    assert [node.op_type for node in graph] == ["Mul", "Head"]
    head = graph[1]
    assert head.attributes["factor"].as_float() == 0.5
    assert head.metadata_props == {"namespace": "head"}
    assert HEAD.form(head).inputs == ("x", "weight", "candidates", "bias")


def test_a_graph_that_ranks_already_is_refused() -> None:
    model = RankTokens()(_model(biased=False)).model
    with pytest.raises(ir.passes.PreconditionError, match="the graph ranks already"):
        RankTokens()(model)


def test_a_graph_without_normalisers_is_refused() -> None:
    model = _model(biased=False)
    model.graph.outputs.pop()
    with pytest.raises(ir.passes.PreconditionError, match="no decoder with normalisers"):
        RankTokens()(model)


def test_another_product_is_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="no product"):
        RankTokens()(_model(biased=False, product="MatMul"))
