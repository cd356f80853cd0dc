"""A graph's hash: what changes it, and what does not."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from drl.export.tensorrt.graph_digest import GraphDigests
from tests.export.tensorrt.small_graphs import model, tensor


def write(
    folder: Path, name: str, weights: np.ndarray, *, offset: int = 0, operator: str = "Relu"
) -> None:
    """A graph whose matrix lies in `weights.bin`, beside others."""
    shape = weights.shape
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node(operator, ["y"], ["z"]),
    ]
    proto = model(nodes, [tensor("x", ("B", shape[0]))], [tensor("z", ("B", shape[1]))])
    initializer = helper.make_tensor("w", TensorProto.FLOAT, shape, weights.tobytes(), raw=True)
    set_external_data(initializer, "weights.bin", offset=offset, length=weights.nbytes)
    initializer.ClearField("raw_data")
    proto.graph.initializer.append(initializer)
    onnx.save(proto, folder / f"{name}.onnx")


def make_folder(path: Path, *blocks: np.ndarray) -> Path:
    path.mkdir()
    (path / "weights.bin").write_bytes(b"".join(block.tobytes() for block in blocks))
    return path


ONES = np.ones((2, 3), np.float32)
TWOS = np.full((2, 3), 2, np.float32)


def test_where_weights_lie_does_not_matter(tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "a", ONES), make_folder(tmp_path / "b", TWOS, ONES)
    write(first, "g", ONES)
    write(second, "g", ONES, offset=ONES.nbytes)
    assert GraphDigests(first).digest("g") == GraphDigests(second).digest("g")


def test_what_weights_hold_does(tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "a", ONES), make_folder(tmp_path / "b", TWOS)
    write(first, "g", ONES)
    write(second, "g", TWOS)
    assert GraphDigests(first).digest("g") != GraphDigests(second).digest("g")


def test_what_other_graphs_read_does_not(tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "a", ONES, ONES), make_folder(tmp_path / "b", ONES, TWOS)
    for folder in (first, second):
        write(folder, "g", ONES)
    assert GraphDigests(first).digest("g") == GraphDigests(second).digest("g")


def test_the_operators_do(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", ONES)
    write(folder, "g", ONES)
    write(folder, "h", ONES, operator="Neg")
    digests = GraphDigests(folder)
    assert digests.digest("g") != digests.digest("h")


def test_weights_inside_branches_and_functions_count(tmp_path: Path) -> None:
    def digest(value: float, inside: str) -> str:
        constant = helper.make_tensor("c", TensorProto.FLOAT, (1,), [value])
        node = helper.make_node("Constant", [], ["out"], value=constant)
        functions = []
        if inside == "function":
            functions.append(
                helper.make_function("drl", "F", [], ["out"], [node], [helper.make_opsetid("", 24)])
            )
            outer = helper.make_node("F", [], ["y"], domain="drl")
        else:
            out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
            branch = helper.make_graph([node], "branch", [], [out])
            outer = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
        proto = model([outer], [tensor("x", (1,))], [tensor("y", (1,))], functions=functions)
        onnx.save(proto, tmp_path / "g.onnx")
        return GraphDigests(tmp_path).digest("g")

    for inside in ("function", "branch"):
        assert digest(1.0, inside) == digest(1.0, inside)
        assert digest(1.0, inside) != digest(2.0, inside)
