"""The operators in ONNX Runtime: the kernels' results, on its threads, and clear refusals."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from drl.plugins.native import Kernels, find_library
from drl.plugins.ops import ROUTED_FFN
from tests.plugins.native.arithmetic import same_bits
from tests.plugins.native.sets import needs_operators
from tests.plugins.native.test_routed_ffn import CASES, pack, run
from tests.plugins.ops.case import Array, Case
from tests.plugins.ops.engines import one_node_model

pytestmark = needs_operators


def model(
    operator: str, feeds: dict[str, Array], constants: dict[str, Array | None], **attributes: Any
) -> onnx.ModelProto:
    """One node: `feeds` are inputs of the graph, then `constants`, of which None is left out."""
    given = {name: array for name, array in constants.items() if array is not None}
    names = [*feeds, *(name if name in given else "" for name in constants)]
    while not names[-1]:
        names.pop()
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], domain="drl", **attributes)],
        "one_node",
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(array.dtype),
                [f"{name}_{axis}" for axis in range(array.ndim)],
            )
            for name, array in feeds.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("drl", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(proto: onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(find_library().path))
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def linear(x: Array, packed: Array, bias: Array | None = None, kind: str = "none") -> Any:
    constants = {"weight": packed, "bias": bias}
    return model("QuantizedLinear", {"x": x}, constants, activation=kind)


def draw(*shape: int) -> Array:
    return np.asarray(np.random.default_rng(list(shape)).standard_normal(shape), np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("leading", [(1,), (3, 7), (2, 1, 40), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_a_linear_is_the_kernels(threads: int, leading: tuple[int, ...], biased: bool) -> None:
    native = Kernels()
    packed = native.pack(draw(1030, 260))
    x, bias = draw(*leading, 260), draw(1030) if biased else None
    (got,) = session(linear(x, packed, bias, "gelu"), threads).run(None, {"x": x})
    expected = native.linear(x.reshape(-1, 260), packed, bias, "gelu")
    assert same_bits(got, expected.reshape(*leading, 1030))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_routed_layer_is_the_kernels(case: Case, threads: int) -> None:
    native, kind = Kernels(), case.attributes["activation"]
    weights = pack(native, case.inputs)
    feeds = {name: case.inputs[name] for name in ("hidden", "expert_ids", "gates")}
    names = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")
    constants = {name: getattr(weights, name) for name in names}
    proto = model("RoutedFFNInt8", feeds, constants, activation=kind)
    (got,) = session(proto, threads).run(None, feeds)
    assert same_bits(got, run(native, case.inputs, weights, kind))


def test_concurrent_runs_of_one_session_do_not_mix() -> None:
    native = Kernels()
    packed = native.pack(draw(600, 260))
    inputs = [draw(rows, 260) for rows in range(1, 60)]
    shared = session(linear(inputs[0], packed), 2)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: shared.run(None, {"x": x})[0], inputs))
    assert all(same_bits(y, native.linear(x, packed)) for x, y in zip(inputs, got, strict=True))


def test_bodies_of_other_operators_still_run() -> None:
    """The library adds to the domain `drl`; what it lacks comes from the graph's functions."""
    case = next(case for case in CASES if case.operator is ROUTED_FFN)
    proto = one_node_model(case.operator, case.inputs, case.attributes)
    (got,) = session(proto).run(None, case.inputs)
    (expected,) = case.expected().values()
    np.testing.assert_allclose(got, expected, atol=2e-5)


def refusal(proto: onnx.ModelProto, feeds: dict[str, Array]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - a class per status code
        session(proto).run(None, feeds)
    return str(caught.value)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    native = Kernels()
    x, packed = draw(2, 9), native.pack(draw(5, 7))
    assert "last dimension of x" in refusal(linear(x, packed), {"x": x})
    x = draw(2, 7)
    assert "bias" in refusal(linear(x, packed, draw(7)), {"x": x})
    assert "activation must be" in refusal(linear(x, packed, kind="softmax"), {"x": x})
    assert "shapes of the packed" in refusal(linear(x, native.pack(draw(2, 5, 7))), {"x": x})
    packed[8] = 9
    assert "newer version" in refusal(linear(x, packed), {"x": x})
    assert "not packed weights" in refusal(linear(x, packed[:50]), {"x": x})


def test_an_unknown_instruction_set_is_refused_at_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    x, packed = draw(2, 7), Kernels().pack(draw(5, 7))
    monkeypatch.setenv("DRL_NATIVE_ISA", "avx9")
    assert "must be avx512vnni, avx2 or scalar" in refusal(linear(x, packed), {"x": x})


@pytest.mark.parametrize("expert", [-2, 4])
def test_an_expert_that_does_not_exist_is_refused(expert: int) -> None:
    case = CASES[0]
    weights = pack(Kernels(), case.inputs)
    feeds = {name: case.inputs[name].copy() for name in ("hidden", "expert_ids", "gates")}
    feeds["expert_ids"][0, 0, 0] = expert
    constants = {name: getattr(weights, name) for name in ("up", "down", "gate")}
    proto = model("RoutedFFNInt8", feeds, constants, **case.attributes)
    assert "outside of [-1, experts)" in refusal(proto, feeds)
