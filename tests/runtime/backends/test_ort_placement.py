"""Nodes that ONNX Runtime leaves to the CPU: which are meant to be there, and which are not."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from drl.runtime import BackendError, Bundle
from drl.runtime.backends.ort_placement import (
    PlacedNode,
    check_placement,
    placed_nodes,
    record_placement,
    stray_nodes,
)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
EVERYWHERE = ("Cast", "Gather", "Reshape", "Unsqueeze")


def nodes(operators: Iterable[str], provider: str) -> list[PlacedNode]:
    return [PlacedNode("decoder", each, f"n/{each}", provider) for each in operators]


def session(providers: list[str], placed: list[PlacedNode]) -> Any:
    """Tells its nodes as ONNX Runtime's session does."""
    parts = [
        SimpleNamespace(
            ep_name=provider,
            get_nodes=lambda provider=provider: [
                SimpleNamespace(domain="", op_type=node.operator, name=node.name)
                for node in placed
                if node.provider == provider
            ],
        )
        for provider in (CUDA, CPU)
    ]
    return SimpleNamespace(
        get_providers=lambda: providers, get_provider_graph_assignment_info=lambda: parts
    )


def open_recorded(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    record_placement(options)
    return onnxruntime.InferenceSession(str(path), options, providers=[CPU])


def test_nodes_are_told_with_those_inside_branches_and_bodies(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    found = list(placed_nodes("decoder", open_recorded(bundle.canonical_file("decoder"))))
    operators = [node.operator for node in found]
    layers = bundle.manifest.cache.decoder_layers
    # Two in each layer: in the bodies of functions, and of some layers inside branches.
    assert operators.count("Attention") == operators.count("TensorScatter") == 2 * layers
    assert operators.count("If") > 0
    assert {node.provider for node in found} == {CPU}


def test_shapes_and_the_experts_in_use_belong_to_the_host() -> None:
    placed = nodes(["Shape", "Reshape", "Concat", "Range", "Unique"], CPU)
    placed += nodes(["MatMul", "Attention", *EVERYWHERE], CUDA)
    assert stray_nodes(placed, CUDA) == []


@pytest.mark.parametrize(
    "operator",
    ["MatMul", "Attention", "TensorScatter", "Softmax", "Transpose", "RMSNormalization", "drl.X"],
)
def test_work_on_the_host_is_found(operator: str) -> None:
    placed = nodes([operator, "Shape"], CPU) + nodes(["MatMul", *EVERYWHERE], CUDA)
    assert [node.operator for node in stray_nodes(placed, CUDA)] == [operator]


@pytest.mark.parametrize("operator", EVERYWHERE)
def test_an_operator_of_every_layer_that_is_nowhere_on_the_device_is_found(operator: str) -> None:
    there = [each for each in EVERYWHERE if each != operator]
    placed = nodes(["Shape", *EVERYWHERE], CPU) + nodes(["MatMul", *there], CUDA)
    assert [node.operator for node in stray_nodes(placed, CUDA)] == [operator]


def test_a_provider_that_did_not_start_is_an_error() -> None:
    with pytest.raises(BackendError, match=f"{CUDA} did not start for the bridge, and .*{CPU}"):
        check_placement({"bridge": session([CPU], nodes(["MatMul"], CPU))}, CUDA, "1.31")


def test_the_error_names_the_first_nodes_and_counts_the_rest() -> None:
    placed = nodes([f"Op{n}" for n in range(8)], CPU) + nodes(EVERYWHERE, CUDA)
    with pytest.raises(BackendError) as caught:
        check_placement({"decoder": session([CUDA, CPU], placed)}, CUDA, "1.31")
    message = str(caught.value)
    assert "decoder Op0 'n/Op0', decoder Op1 'n/Op1'" in message
    assert "Op4" in message
    assert "Op5" not in message
    assert "and 3 more; upgrade with" in message
    assert "\n" not in message


def test_the_graphs_of_a_bundle_together_decide_what_the_device_has() -> None:
    parts = {
        "bridge": session([CUDA, CPU], nodes(["Cast", "Shape"], CPU) + nodes(["MatMul"], CUDA)),
        "decoder": session([CUDA, CPU], nodes(EVERYWHERE, CUDA)),
    }
    check_placement(parts, CUDA, "1.31")
    del parts["decoder"]
    with pytest.raises(BackendError, match=r"bridge Cast 'n/Cast'"):
        check_placement(parts, CUDA, "1.31")


def test_on_the_cpu_everything_is_where_it_belongs(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    check_placement({"decoder": open_recorded(bundle.canonical_file("decoder"))}, CPU, "1.31")
