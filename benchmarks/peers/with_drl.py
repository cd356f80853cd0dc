"""This project's runtime; the variant is the decoding path."""

from typing import Any


class Peer:
    """See `worker.Peer`."""

    def __init__(self, variant: str) -> None:
        self.version = ""
        self._path = variant
        self._engine: Any = None

    def prepare(self, checkpoint: str, scratch: str) -> None:
        """Nothing: it is given a bundle."""

    def load(self, checkpoint: str, scratch: str, threads: int) -> None:
        """Open the bundle `checkpoint`."""
        from importlib.metadata import version

        from drl.runtime import Engine

        self.version = version("drl")
        self._engine = Engine.from_bundle(checkpoint, threads=threads, max_batch_size=1024)

    def generate(self, sources: list[list[int]], new: int, beams: int) -> list[list[int]]:
        """See `worker.Peer`."""
        from drl.runtime import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=new, min_new_tokens=new, num_beams=beams, logprobs=False
        )
        return [r.tokens for r in self._engine.generate(sources, config, path=self._path)]
