"""The graphs that TensorRT builds engines from, run by ONNX Runtime on the CPU."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from drl.export.tensorrt.lowering import LoweringOptions, lower_bundle
from drl.export.tensorrt.numeric_gate import check_precision
from drl.export.verification.candidate import Candidate
from drl.export.verification.graph_backend import GraphBackend
from drl.export.verification.graph_runner import OrtRunner, OrtSettings, Passes
from drl.runtime.backends import Backend
from drl.runtime.backends.ort_session import import_onnxruntime
from drl.runtime.bundle import Bundle


class TensorRTForm(Candidate):
    """What engines are built from, in fp16, without TensorRT.

    It shows mistakes of the lowering and what fp16 costs, on any machine.
    """

    name = "tensorrt-form"
    precision = "fp16"

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._made = ExitStack()

    def check(self) -> None:
        """See `Candidate.check`.

        Raises:
            ExportError: The model leaves the range of fp16.
        """
        import_onnxruntime()
        self.bundle.canonical_file("decoder")
        check_precision(self.bundle, self.precision)

    def open(self) -> Backend:
        """See `Candidate.open`."""
        return self.open_with(())

    def open_with(self, passes: Passes) -> GraphBackend:
        """See `Candidate.open_with`. The passes run over the canonical graphs."""
        made = tempfile.TemporaryDirectory(prefix="drl-verify-")
        folder = Path(self._made.enter_context(made))
        options = LoweringOptions(precision=self.precision)
        graphs = lower_bundle(self.bundle, options, folder, before=passes)
        files = {graph.name: folder / f"{graph.name}.onnx" for graph in graphs}
        return GraphBackend(
            self.bundle.manifest,
            OrtRunner(files, OrtSettings("CPU, the graphs of TensorRT")),
            specialised=True,
            cache_dtype="float16",
            capacity=self.bundle.manifest.limits.max_target_length,
        )

    def close(self) -> None:
        """Remove the lowered graphs."""
        self._made.close()
