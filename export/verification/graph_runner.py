"""Runs single ONNX graphs by name, as they are or with passes run over them first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from drl.runtime.arrays import Array
from drl.runtime.backends.ort_placement import check_placement, record_placement
from drl.runtime.backends.ort_session import import_onnxruntime, session_options
from drl.runtime.backends.threads import choose_threads
from drl.runtime.errors import BackendError

Passes = Sequence[ir.passes.PassBase]
Providers = tuple[tuple[str, Mapping[str, str]], ...]
"""Execution providers with their options."""
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_TYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}


class GraphRunner(Protocol):
    """A library with graphs loaded, which are called by name with arrays of the host."""

    @property
    def name(self) -> str:
        """The library and device, for people."""

    def inputs(self, graph: str) -> Mapping[str, np.dtype[Any]]:
        """Names and types of a graph's inputs."""

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run a graph on its inputs and return all of its outputs.

        Raises:
            BackendError: The library refuses.
        """

    def close(self) -> None:
        """Give back what the library holds."""


@dataclass(frozen=True)
class OrtSettings:
    """How ONNX Runtime runs graphs.

    Attributes:
        label: What people call it, beside the library's version.
        operators: The library of native operators to register, or None to run bodies.
        providers: Execution providers with their options, in order of preference. All work has to
            run with the first one.
    """

    label: str
    operators: Path | None = None
    providers: Providers = (("CPUExecutionProvider", {}),)


class OrtRunner:
    """`GraphRunner` of ONNX Runtime, which opens a graph when it is first asked for.

    Args:
        files: The graph files by name; external weights lie beside them.
        settings: How to run them.
        passes: What to run over every graph before.

    Raises:
        BackendError: ONNX Runtime is missing. Calls raise it where a graph does not load, or not
            run where it was meant to.
    """

    def __init__(
        self, files: Mapping[str, Path], settings: OrtSettings, passes: Passes = ()
    ) -> None:
        self._ort = import_onnxruntime()
        self._files = files
        self._settings = settings
        self._passes = passes
        self._sessions: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """See `GraphRunner.name`."""
        return f"ONNX Runtime {self._ort.__version__}, {self._settings.label}"

    def inputs(self, graph: str) -> Mapping[str, np.dtype[Any]]:
        """See `GraphRunner.inputs`."""
        items = self._session(graph).get_inputs()
        return {item.name: _TYPES[item.type] for item in items}

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `GraphRunner.run`."""
        session = self._session(graph)
        names = [item.name for item in session.get_outputs()]
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # the library has a class per status code, without a root
            raise BackendError(f"{self.name} cannot run {graph}: {_line(error)}") from error

    def close(self) -> None:
        """See `GraphRunner.close`."""
        self._sessions.clear()

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            self._sessions[graph] = self._open(graph, self._files[graph])
        return self._sessions[graph]

    def _open(self, graph: str, file: Path) -> Any:
        options = session_options(self._ort, choose_threads(None))
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(file.parent.resolve()))
        providers = [(name, dict(given)) for name, given in self._settings.providers]
        record_placement(options)
        try:
            if self._settings.operators is not None:
                options.register_custom_ops_library(str(self._settings.operators))
            session = self._ort.InferenceSession(
                load_with_passes(file, self._passes), options, providers=providers
            )
        except Exception as error:  # as above
            raise BackendError(f"{self.name} cannot load {graph}: {_line(error)}") from error
        check_placement({graph: session}, providers[0][0], self._ort.__version__)
        return session


def load_with_passes(file: Path, passes: Passes) -> bytes:
    """Read a graph, run passes over it, and return it serialised, its weights still outside."""
    if not passes:
        return file.read_bytes()
    model = ir.passes.Sequential(*passes)(ir.load(file)).model
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
