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


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("lengths", "new"),
    [([0], 1), ([0, 0, 0], 5), ([7], 4), ([3, 0, 9], 1), ([3, 0, 9], 4), ([20, 1], 4)],
    ids=["first token", "prefill", "chunk alone", "ragged step", "ragged chunk", "full cache"],
)
def test_lowered_attention_is_cached_attention(lengths: list[int], new: int, biased: bool) -> None:
    generator = np.random.default_rng(0)
    rows = len(lengths)

    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    feeds = {
        "tokens": np.zeros((rows, new), np.int64),
        "lengths": np.array(lengths, np.int32),
        "q": draw(rows, new, HEADS * WIDTH),
        "k": draw(rows, new, KV_HEADS * WIDTH),
        "v": draw(rows, new, KV_HEADS * WIDTH),
        "past_k": draw(rows, KV_HEADS, CAPACITY, WIDTH),
        "past_v": draw(rows, KV_HEADS, CAPACITY, WIDTH),
    }
    if biased:
        feeds["bias"] = draw(rows, HEADS, new, max(lengths) + new)
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
