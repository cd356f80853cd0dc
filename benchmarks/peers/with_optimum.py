"""Optimum: the checkpoint exported to ONNX, on ONNX Runtime, in `fp32` or `int8`."""

from pathlib import Path
from typing import Any


class Peer:
    """See `worker.Peer`."""

    def __init__(self, variant: str) -> None:
        self.version = ""
        self._int8 = variant == "int8"
        self._model: Any = None
        self._torch: Any = None

    def prepare(self, checkpoint: str, scratch: str) -> None:
        """Export the checkpoint, and quantise weights to int8 per channel."""
        from optimum.onnxruntime import ORTModelForSeq2SeqLM, ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        exported = Path(scratch, "fp32")
        ORTModelForSeq2SeqLM.from_pretrained(checkpoint, export=True).save_pretrained(exported)
        if not self._int8:
            return
        how = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        target = Path(scratch, "int8")
        for file in sorted(exported.glob("*.onnx")):
            quantizer = ORTQuantizer.from_pretrained(exported, file_name=file.name)
            quantizer.quantize(save_dir=target, quantization_config=how, file_suffix="")

    def load(self, checkpoint: str, scratch: str, threads: int) -> None:
        """Load the exported graphs."""
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForSeq2SeqLM
        from optimum.version import __version__

        torch.set_num_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        folder = Path(scratch, "int8" if self._int8 else "fp32")
        self.version, self._torch = __version__, torch
        self._model = ORTModelForSeq2SeqLM.from_pretrained(folder, session_options=options)

    def generate(self, sources: list[list[int]], new: int, beams: int) -> list[list[int]]:
        """See `worker.Peer`; sources are of one length."""
        tokens = self._torch.tensor(sources)
        made = self._model.generate(
            tokens,
            attention_mask=self._torch.ones_like(tokens),
            max_new_tokens=new,
            min_new_tokens=new,
            num_beams=beams,
            do_sample=False,
        )
        rows: list[list[int]] = made[:, 1:].tolist()
        return rows
