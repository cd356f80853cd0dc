"""The backends by name: how each is opened, as the runtime does and with passes over its graphs."""

from drl.export.verification.candidate import Candidate
from drl.export.verification.cuda import OrtCuda
from drl.export.verification.graph_backend import GraphBackend
from drl.export.verification.graph_runner import OrtRunner, OrtSettings, Passes
from drl.export.verification.options import BACKENDS
from drl.export.verification.tensorrt import TensorRT
from drl.export.verification.tensorrt_form import TensorRTForm
from drl.runtime.backends import Backend, open_backend
from drl.runtime.backends.native import native_operators
from drl.runtime.backends.ort_session import import_onnxruntime
from drl.runtime.backends.tensorrt.library import FLAVOURS
from drl.runtime.bundle import Bundle
from drl.runtime.manifest import GRAPHS


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
        settings = OrtSettings("CPU", native_operators(self.bundle.manifest))
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
    found: list[Candidate] = [
        *(kind(bundle) for kind in (OrtCpu, Portable, TensorRTForm, OrtCuda)),
        *(TensorRT(bundle, flavour) for flavour in FLAVOURS),
    ]
    by_name = {candidate.name: candidate for candidate in found}
    return {name: by_name[name] for name in BACKENDS}
