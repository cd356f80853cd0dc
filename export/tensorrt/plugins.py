"""The plugins that graphs use, told apart by what they are made of."""

import hashlib
from collections.abc import Iterable
from importlib import resources

import onnx_ir as ir

NAMES = ("ExpertRoute", "RoutedFFNInner", "RoutedFFNCombine")
_DOMAIN = "drl"
_SOURCES = (".cu", ".cuh", ".py")


def used_plugins(model: ir.Model) -> frozenset[str]:
    """The plugins that take the place of operators in a graph lowered for them."""
    found = {
        node.op_type for node in _nodes(model) if node.domain == _DOMAIN and node.op_type in NAMES
    }
    return frozenset(found)


def plugin_digests() -> dict[str, str]:
    """A SHA-256 for each plugin that changes with the sources it is compiled from."""
    digest = hashlib.sha256()
    package = resources.files("drl.plugins.cuda")
    for folder in (package, package / "src"):
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.is_file() and file.name.endswith(_SOURCES):
                digest.update(file.name.encode())
                digest.update(file.read_bytes())
    return dict.fromkeys(NAMES, digest.hexdigest())


def _nodes(model: ir.Model) -> Iterable[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()
