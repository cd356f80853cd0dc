"""CTranslate2, in `fp32` or `int8`."""

import json
from pathlib import Path
from typing import Any

_TYPES = {"fp32": "float32", "int8": "int8"}


class Peer:
    """See `worker.Peer`."""

    def __init__(self, variant: str) -> None:
        self.version = ""
        self._type = _TYPES[variant]
        self._translator: Any = None
        self._words: list[str] = []
        self._ids: dict[str, int] = {}

    def prepare(self, checkpoint: str, scratch: str) -> None:
        """Convert the checkpoint."""
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(checkpoint).convert(
            str(Path(scratch, "model")), quantization=self._type
        )

    def load(self, checkpoint: str, scratch: str, threads: int) -> None:
        """Load the converted model."""
        import ctranslate2

        folder = Path(scratch, "model")
        self.version = ctranslate2.__version__
        self._translator = ctranslate2.Translator(
            str(folder),
            device="cpu",
            compute_type=self._type,
            inter_threads=1,
            intra_threads=threads,
        )
        words = (folder / "shared_vocabulary.json").read_text(encoding="utf-8")
        self._words = json.loads(words)
        self._ids = {word: index for index, word in enumerate(self._words)}

    def generate(self, sources: list[list[int]], new: int, beams: int) -> list[list[int]]:
        """See `worker.Peer`."""
        texts = [[self._words[token] for token in source] for source in sources]
        made = self._translator.translate_batch(
            texts,
            beam_size=beams,
            min_decoding_length=new,
            max_decoding_length=new,
            max_input_length=0,
        )
        return [[self._ids[word] for word in each.hypotheses[0]] for each in made]
