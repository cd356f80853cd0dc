import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript
import pytest

from drl.export.passes import AppendFunctionBodies, LowerCachedAttention
from drl.plugins.ops import CACHED_ATTENTION

HEADS, KV_HEADS, WIDTH, CAPACITY = 4, 2, 16, 24
FLOAT, INT32, INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64


def _model(*, biased: bool, width: int = WIDTH) -> ir.Model:
    """One attention node over graph inputs, with heads of `width`."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24, "drl": 1}, name="decoder")
    builder = onnxscript.GraphBuilder(graph)
    builder.input("tokens", INT64, ["B", "T"])
    lengths = builder.input("lengths", INT32, ["B"])
    q = builder.input("q", FLOAT, ["B", "T", HEADS * width])
    k = builder.input("k", FLOAT, ["B", "T", KV_HEADS * width])
    v = builder.input("v", FLOAT, ["B", "T", KV_HEADS * width])
    cache = ["B", KV_HEADS, CAPACITY, width]
    past = [builder.input(f"past_{side}", FLOAT, cache) for side in "kv"]
    bias = builder.input("bias", FLOAT, ["B", HEADS, "T", "L"]) if biased else None
    results = CACHED_ATTENTION.emit(
        builder.op, q, k, v, *past, lengths, bias, num_heads=HEADS, scale=0.3
    )
    for name, value in zip(("output", "present_k", "present_v"), results, strict=True):
        builder.add_output(value, name)
    return ir.Model(graph, ir_version=11)


def _session(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def _feeds(lengths: list[int], new: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    rows = len(lengths)

    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    return {
        "tokens": np.zeros((rows, new), np.int64),
        "lengths": np.array(lengths, np.int32),
        "q": draw(rows, new, HEADS * WIDTH),
        "k": draw(rows, new, KV_HEADS * WIDTH),
        "v": draw(rows, new, KV_HEADS * WIDTH),
        "past_k": draw(rows, KV_HEADS, CAPACITY, WIDTH),
        "past_v": draw(rows, KV_HEADS, CAPACITY, WIDTH),
    }


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("lengths", "new"),
    [([0], 1), ([0, 0, 0], 5), ([7], 4), ([3, 0, 9], 1), ([3, 0, 9], 4), ([20, 1], 4)],
    ids=["first token", "prefill", "chunk alone", "ragged step", "ragged chunk", "full cache"],
)
def test_lowered_attention_is_cached_attention(lengths: list[int], new: int, biased: bool) -> None:
    feeds = _feeds(lengths, new)
    if biased:
        shape = (len(lengths), HEADS, new, max(lengths) + new)
        feeds["bias"] = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    model = AppendFunctionBodies()(LowerCachedAttention()(_model(biased=biased)).model).model
    output, keys, values = _session(model).run(None, feeds)
    expected, expected_keys, expected_values = CACHED_ATTENTION.reference(
        *(feeds[name] for name in ("q", "k", "v", "past_k", "past_v", "lengths")),
        *([feeds["bias"]] if biased else []),
        num_heads=HEADS,
        scale=0.3,
    )
    np.testing.assert_allclose(output, expected, atol=1e-5)
    for row, length in enumerate(lengths):
        # beyond the filled slots the kernel may leave anything: nothing reads there
        filled = (row, slice(None), slice(length + new))
        np.testing.assert_array_equal(keys[filled], expected_keys[filled])
        np.testing.assert_array_equal(values[filled], expected_values[filled])


def test_the_fast_kernel_is_in_and_the_body_stays_for_what_it_refuses() -> None:
    model = LowerCachedAttention()(_model(biased=False)).model
    kinds = [node.op_type for node in model.graph.all_nodes()]
    assert kinds.count("GroupQueryAttention") == 1
    assert kinds.count("CachedAttention") == 1


def test_a_second_run_changes_nothing() -> None:
    model = LowerCachedAttention()(_model(biased=False)).model
    kinds = [node.op_type for node in model.graph.all_nodes()]
    result = LowerCachedAttention()(model)
    assert not result.modified
    assert [node.op_type for node in result.model.graph.all_nodes()] == kinds


def test_an_operator_of_another_domain_is_left_alone() -> None:
    model = _model(biased=False)
    for node in model.graph:
        node.domain = "elsewhere"
    assert not LowerCachedAttention()(model).modified


def test_a_node_inside_a_branch_is_lowered_there() -> None:
    """Layers that a path skips are branches of an `If`."""
    model = _model(biased=False)
    graph = model.graph
    (node,) = [node for node in graph if node.op_type == "CachedAttention"]
    condition = ir.val("runs", ir.DataType.BOOL, [])
    graph.inputs.append(condition)
    outputs = list(node.outputs)
    zeros = []
    for name, output in zip(("q", "past_k", "past_v"), outputs, strict=True):
        source = next(value for value in graph.inputs if value.name == name)
        zeros.append(ir.node("Identity", [source], name=f"skip_{name}"))
        zeros[-1].outputs[0].name = f"skip_{name}"
        zeros[-1].outputs[0].type, zeros[-1].outputs[0].shape = output.type, output.shape
    skipped = ir.Graph([], [z.outputs[0] for z in zeros], nodes=zeros, name="skipped")
    inner = ir.Node(node.domain, node.op_type, node.inputs, node.attributes.values(), num_outputs=3)
    inner.name = "layer/CachedAttention"
    for own, old in zip(inner.outputs, outputs, strict=True):
        own.name, own.type, own.shape = f"inner_{old.name}", old.type, old.shape
    runs = ir.Graph([], inner.outputs, nodes=[inner], name="runs")
    branches = {"then_branch": runs, "else_branch": skipped}
    choice = ir.node("If", [condition], branches, num_outputs=3, name="layer")
    ir.convenience.replace_nodes_and_values(graph, node, [node], [choice], outputs, choice.outputs)
    before = _feeds([3, 0, 9], 1) | {"runs": np.array(True)}
    plain = _session(AppendFunctionBodies()(model.clone()).model).run(None, before)
    lowered = LowerCachedAttention()(model).model
    assert [node.op_type for node in runs] == ["If"]
    fast = _session(AppendFunctionBodies()(lowered).model).run(None, before)
    np.testing.assert_allclose(fast[0], plain[0], atol=1e-5)


def test_heads_of_a_size_that_the_kernel_refuses_keep_the_operator() -> None:
    result = LowerCachedAttention()(_model(biased=True, width=10))
    assert not result.modified
    _session(AppendFunctionBodies()(result.model).model)


def test_a_graph_without_lengths_is_refused() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="other")
    with pytest.raises(ir.passes.PreconditionError, match="lengths"):
        LowerCachedAttention()(ir.Model(graph, ir_version=11))


def test_a_graph_without_attention_is_left_alone() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="other")
    for name in ("tokens", "lengths"):
        graph.inputs.append(ir.val(name, INT32, ["B"]))
    assert not LowerCachedAttention()(ir.Model(graph, ir_version=11)).modified
