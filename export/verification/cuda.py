"""ONNX Runtime on an NVIDIA GPU."""

from drl.export.verification.candidate import Candidate
from drl.export.verification.graph_backend import GraphBackend
from drl.export.verification.graph_runner import OrtRunner, OrtSettings, Passes, Providers
from drl.runtime.backends import Backend, open_backend
from drl.runtime.backends.cuda import open_gpu
from drl.runtime.backends.ort_cuda import PROVIDER, check_provider
from drl.runtime.backends.ort_session import import_onnxruntime
from drl.runtime.manifest import GRAPHS


class OrtCuda(Candidate):
    """The canonical graphs on ONNX Runtime, as `device="cuda"` runs them.

    With passes over them, their inputs and outputs are arrays of the host; the arithmetic is the
    same, and just as there, nothing but shapes may run on the CPU.
    """

    name = "ort-cuda"

    def check(self) -> None:
        """See `Candidate.check`."""
        self.bundle.canonical_file("decoder")
        check_provider(import_onnxruntime())
        open_gpu(0).close()

    def open(self) -> Backend:
        """See `Candidate.open`."""
        return open_backend(self.bundle, "cuda")

    def open_with(self, passes: Passes) -> GraphBackend:
        """See `Candidate.open_with`."""
        files = {name: self.bundle.canonical_file(name) for name in GRAPHS}
        # TF32 has 10 bits, and fp32 is what the bundle promises.
        providers: Providers = ((PROVIDER, {"use_tf32": "0"}), ("CPUExecutionProvider", {}))
        settings = OrtSettings("CUDA", providers=providers)
        return GraphBackend(self.bundle.manifest, OrtRunner(files, settings, passes))
