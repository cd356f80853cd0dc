"""The plugins that graphs are built with, told apart by what they are made of."""

import hashlib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import onnx_ir as ir

from drl.export.tensorrt.lowering import LoweredGraph
from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.cuda.plugin_nodes import PluginForm, use_plugins
from drl.runtime.errors import ExportError

_SOURCES = (".cu", ".cuh", ".py")


def put_plugins(graph: LoweredGraph, folder: Path) -> tuple[PluginForm, ...]:
    """Put plugins in the place of a lowered graph's operators, in memory and in its file.

    Args:
        graph: Lowered for plugins.
        folder: Holds its file, `<name>.onnx`.

    Returns:
        The plugins that it needs.

    Raises:
        ExportError: An operator has a form that no plugin takes.
    """
    try:
        forms = use_plugins(graph.model)
    except CudaKernelError as error:
        raise ExportError(
            f"the graph {graph.name} cannot have plugins ({error}); build with --no-plugins"
        ) from error
    if forms:
        ir.save(graph.model, folder / f"{graph.name}.onnx")
    return forms


def plugin_digests(names: Iterable[str]) -> dict[str, str]:
    """A SHA-256 for each plugin that changes with the sources it is compiled from."""
    digest = hashlib.sha256()
    package = resources.files("drl.plugins.cuda")
    for folder in (package, package / "src"):
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.is_file() and file.name.endswith(_SOURCES):
                digest.update(file.name.encode())
                digest.update(file.read_bytes())
    return dict.fromkeys(sorted(names), digest.hexdigest())
