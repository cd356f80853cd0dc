"""Transformers on PyTorch, as it is (`eager`) or through torch.compile (`compiled`)."""

from importlib import import_module
from typing import Any


class Peer:
    """See `worker.Peer`."""

    def __init__(self, variant: str) -> None:
        self.version = ""
        self._compiled = variant == "compiled"
        self._model: Any = None
        self._torch: Any = None

    def prepare(self, checkpoint: str, scratch: str) -> None:
        """Nothing: it reads the checkpoint itself."""

    def load(self, checkpoint: str, scratch: str, threads: int) -> None:
        """Load the checkpoint in fp32."""
        torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
        transformers.utils.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.version, self._torch = transformers.__version__, torch
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
        self._model = model.float().eval()
        if self._compiled:
            # Lengths grow from step to step: one program for all of them.
            self._model.forward = torch.compile(self._model.forward, dynamic=True)

    def generate(self, sources: list[list[int]], new: int, beams: int) -> list[list[int]]:
        """See `worker.Peer`; sources are of one length."""
        tokens = self._torch.tensor(sources)
        with self._torch.inference_mode():
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
