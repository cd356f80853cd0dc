"""Bundles with mistakes made on purpose, each in one known place."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from drl.runtime.bundle import Bundle

Change = Callable[[ir.Model], None]


def damaged(bundle: Path, into: Path, graph: str, change: Change) -> Bundle:
    """A copy of a bundle with one graph file changed."""
    folder = shutil.copytree(bundle, into)
    model = ir.load(folder / graph)
    change(model)
    ir.save(model, folder / graph)
    return sealed(folder)


def with_weights(
    bundle: Path, into: Path, name: str, change: Callable[[np.ndarray], None]
) -> Bundle:
    """A copy of a bundle with one tensor of `weights.bin` changed in place."""
    folder = shutil.copytree(bundle, into)
    tensor = next(
        value.const_value
        for graph in ("encoder", "bridge", "decoder")
        for value in ir.load(folder / f"{graph}.onnx").graph.initializers.values()
        if value.name == name
    )
    assert isinstance(tensor, ir.ExternalTensor)
    data = np.memmap(folder / "weights.bin", np.uint8, "r+")
    span = slice(tensor.offset, (tensor.offset or 0) + (tensor.length or 0))
    array = data[span].view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
    change(array)
    data.flush()
    return sealed(folder)


def sealed(folder: Path) -> Bundle:
    """The bundle in a folder, with its files' hashes written anew: its mistakes are inside."""
    path = folder / "bundle.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for name, entry in document["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(document), encoding="utf-8")
    return Bundle.load(folder)


def epsilon(namespace: str, value: float = 0.1) -> Change:
    """Give a norm another epsilon, by its module or by that of the product that does it."""

    def change(model: ir.Model) -> None:
        (norm,) = (
            node
            for node in model.graph.all_nodes()
            if node.metadata_props.get("namespace") == namespace and "epsilon" in node.attributes
        )
        norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", value)

    return change


def attribute(namespace: str, name: str, value: float) -> Change:
    """Give all nodes of a module that have a float attribute another value of it."""

    def change(model: ir.Model) -> None:
        nodes = [
            node
            for node in model.graph.all_nodes()
            if node.metadata_props.get("namespace") == namespace and name in node.attributes
        ]
        assert nodes
        for node in nodes:
            node.attributes[name] = ir.AttrFloat32(name, value)

    return change
