"""ONNX Runtime's own generation: encoder and decoder inside one `BeamSearch` operator, in fp32."""

import json
from pathlib import Path
from typing import Any


class Peer:
    """See `worker.Peer`. A beam search of width 1 is its greedy search."""

    def __init__(self, variant: str) -> None:
        self.version = ""
        self._session: Any = None

    def prepare(self, checkpoint: str, scratch: str) -> None:
        """Export the checkpoint with the scripts that ONNX Runtime ships, for its CPU provider.

        Raises:
            ValueError: It is no T5. The scripts would take its kin for T5, and leave out what T5
                lacks, such as the experts of Switch Transformers.
        """
        kind = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))["model_type"]
        if kind != "t5":
            raise ValueError(f"its scripts convert T5, and this model is {kind}")
        from onnxruntime.transformers import convert_generation
        from onnxruntime.transformers.models.t5.convert_to_onnx import export_onnx_models

        # The scripts' own fusions make operators that only its CUDA provider has.
        encoder, decoder = export_onnx_models(
            checkpoint, "", Path(scratch), overwrite=True, optimize_onnx=False
        )
        options = {
            "--model_name_or_path": checkpoint,
            "--model_type": "t5",
            "--encoder_decoder_init_onnx": str(encoder),
            "--decoder_onnx": str(decoder),
            "--output": str(_graph(scratch)),
        }
        words = [word for option in options.items() for word in option]
        words += ["--disable_parity", "--disable_perf_test"]
        convert_generation.convert_generation_model(convert_generation.parse_arguments(words))

    def load(self, checkpoint: str, scratch: str, threads: int) -> None:
        """Load the graph."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.version = onnxruntime.__version__
        self._session = onnxruntime.InferenceSession(
            str(_graph(scratch)), options, providers=["CPUExecutionProvider"]
        )

    def generate(self, sources: list[list[int]], new: int, beams: int) -> list[list[int]]:
        """See `worker.Peer`; sources are of one length."""
        import numpy as np

        whole = {"min_length": new + 1, "max_length": new + 1}
        whole |= {"num_beams": beams, "num_return_sequences": 1}
        penalties = {"length_penalty": 1.0, "repetition_penalty": 1.0}
        feeds = {"input_ids": np.array(sources, np.int32)}
        feeds |= {name: np.array([value], np.int32) for name, value in whole.items()}
        feeds |= {name: np.array([value], np.float32) for name, value in penalties.items()}
        (made,) = self._session.run(None, feeds)
        rows: list[list[int]] = made[:, 0, 1:].tolist()
        return rows


def _graph(scratch: str) -> Path:
    return Path(scratch, "beam_search.onnx")
