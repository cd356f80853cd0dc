"""The backends by name: how each is opened, as the runtime does and with passes over its graphs."""

from abc import ABC, abstractmethod

from drl.export.verification.graph_backend import GraphBackend
from drl.export.verification.graph_runner import OrtRunner, OrtSettings, Passes
from drl.export.verification.options import BACKENDS
from drl.runtime.backends import Backend, open_backend
from drl.runtime.backends.native import native_operators
from drl.runtime.backends.ort import import_onnxruntime
from drl.runtime.bundle import Bundle
from drl.runtime.manifest import GRAPHS


class Candidate(ABC):
    """A backend that a bundle can be compared on.

    Args:
        bundle: The bundle.

    Attributes:
        bundle: The bundle.
        precision: What the backend computes in.
    """

    name: str
    precision: str = "fp32"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @abstractmethod
    def check(self) -> None:
        """See whether it can be opened here.

        Raises:
            BackendError: It is not available; the message says what mends it.
            BundleError: The bundle lacks what it is made from.
        """

    @abstractmethod
    def open(self) -> Backend:
        """Open it as it is used.

        Raises:
            BackendError: It does not load.
            ExportError: It cannot be made from the bundle.
        """

    @abstractmethod
    def open_with(self, passes: Passes) -> GraphBackend:
        """Open it over graphs with passes run over them. Raises what `open` does."""

    def close(self) -> None:  # noqa: B027 - most keep nothing
        """Give back what was made to open it."""


class OrtCpu(Candidate):
    """The bundle's own graphs on ONNX Runtime, as `device="cpu"` runs them."""

    name = "ort-cpu"

    def check(self) -> None:
        """See `Candidate.check`."""
        import_onnxruntime()

    def open(self) -> Backend:
        """See `Candidate.open`."""
        return open_backend(self.bundle, "cpu")

    def open_with(self, passes: Passes) -> GraphBackend:
        """See `Candidate.open_with`."""
        files = {name: self.bundle.graph_file(name) for name in GRAPHS}
        version = import_onnxruntime().__version__
        settings = OrtSettings("CPU", native_operators(self.bundle.manifest, version))
        return GraphBackend(self.bundle.manifest, OrtRunner(files, settings, passes))


class Portable(Candidate):
    """The canonical graphs on ONNX Runtime, from the operators' bodies alone."""

    name = "portable"

    def check(self) -> None:
        """See `Candidate.check`."""
        import_onnxruntime()
        self.bundle.canonical_file("decoder")

    def open(self) -> Backend:
        """See `Candidate.open`."""
        return self.open_with(())

    def open_with(self, passes: Passes) -> GraphBackend:
        """See `Candidate.open_with`."""
        files = {name: self.bundle.canonical_file(name) for name in GRAPHS}
        settings = OrtSettings("CPU, operators' bodies")
        return GraphBackend(self.bundle.manifest, OrtRunner(files, settings, passes))


def candidates(bundle: Bundle) -> dict[str, Candidate]:
    """Return every backend by name, in the order in which they are compared."""
    found = {kind.name: kind(bundle) for kind in (OrtCpu, Portable)}
    return {name: found[name] for name in BACKENDS if name in found}
