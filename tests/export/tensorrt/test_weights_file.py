from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from drl.export.passes.typed_precision import cast_tensor
from drl.export.tensorrt.weights_file import externalise

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def _model(**weights: ir.TensorProtocol) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="graph")
    for name, tensor in weights.items():
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return ir.Model(graph, ir_version=11)


def _tensor(name: str, size: int = 300) -> ir.Tensor[np.ndarray]:
    values = np.random.default_rng(len(name)).standard_normal(size).astype(np.float32)
    return ir.Tensor(values, name=name)


def _stored(model: ir.Model, name: str) -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def test_a_tensor_of_several_graphs_is_written_once_for_each_type(tmp_path: Path) -> None:
    table = _tensor("table")
    first = _model(table=table)
    second = _model(**{"table": cast_tensor(table, HALF), "table.float": table})
    externalise([first, second], tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size == 1216 + 600  # the first is padded to 64
    places = [_stored(first, "table"), _stored(second, "table"), _stored(second, "table.float")]
    assert [place.offset for place in places] == [0, 1216, 0]  # type: ignore[attr-defined]
    assert [place.dtype for place in places] == [FLOAT, HALF, FLOAT]
    for place in places:
        np.testing.assert_array_equal(place.numpy(), table.numpy().astype(place.dtype.numpy()))


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    model = _model(small=cast_tensor(_tensor("small", 8), HALF), large=_tensor("large"))
    externalise([model], tmp_path)
    assert isinstance(_stored(model, "small"), ir.Tensor)
    assert isinstance(_stored(model, "large"), ir.ExternalTensor)
    assert _stored(model, "small").dtype == HALF


def test_tensors_are_read_one_at_a_time(tmp_path: Path) -> None:
    alive: list[str] = []
    most = 0

    def lazy(name: str) -> ir.LazyTensor:
        def read() -> ir.TensorProtocol:
            nonlocal most
            alive.append(name)
            most = max(most, len(set(alive)))
            return _tensor(name)

        return ir.LazyTensor(read, dtype=FLOAT, shape=ir.Shape([300]), name=name)

    model = _model(**{name: lazy(name) for name in ("a", "bb", "ccc")})
    externalise([model], tmp_path)
    assert alive == ["a", "bb", "ccc"]
    assert all(isinstance(_stored(model, name), ir.ExternalTensor) for name in alive)


def test_a_weight_that_overflows_ends_it(tmp_path: Path) -> None:
    large = ir.Tensor(np.full(300, 1e5, np.float32), name="large")
    with pytest.raises(OverflowError, match="large reaches 1e"):
        externalise([_model(large=cast_tensor(large, HALF))], tmp_path)
