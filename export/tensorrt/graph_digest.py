"""A hash of a lowered graph that changes when what it computes may change, and only then."""

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx


@dataclass
class GraphDigests:
    """Hashes graphs of one folder, whose weights lie in shared files.

    Where a weight lies in its file does not count, as other graphs' weights move it: its content
    does. Each stretch of a file is read once.

    Attributes:
        folder: Holds the graphs and their weights.
    """

    folder: Path
    _weights: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def digest(self, name: str) -> str:
        """The SHA-256 of the graph in `<name>.onnx`, weights included."""
        model = onnx.load(self.folder / f"{name}.onnx", load_external_data=False)
        for tensor in _tensors(model):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                digest = self._external(tensor)
                del tensor.external_data[:]
                tensor.external_data.add(key="sha256", value=digest)
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()

    def _external(self, tensor: onnx.TensorProto) -> str:
        place = {entry.key: entry.value for entry in tensor.external_data}
        file, start = place["location"], int(place.get("offset", 0))
        size = (self.folder / file).stat().st_size
        end = start + int(place["length"]) if "length" in place else size
        key = (file, start, end)
        if key not in self._weights:
            self._weights[key] = self._hash(*key) if end > start else hashlib.sha256().hexdigest()
        return self._weights[key]

    def _hash(self, file: str, start: int, end: int) -> str:
        with (self.folder / file).open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        with content, memoryview(content) as view, view[start:end] as part:
            return hashlib.sha256(part).hexdigest()


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: "list[onnx.NodeProto]") -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _of_graph(graph)
