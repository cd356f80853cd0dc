"""What one build process is told, as a line of JSON on its standard input."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from drl.runtime.backends.tensorrt.library import Flavour
from drl.runtime.backends.tensorrt.manifest import EngineOptions, Shapes


@dataclass(frozen=True)
class Job:
    """One engine to build.

    Attributes:
        flavour: Of TensorRT.
        graph: The lowered graph, an ONNX file.
        engine: Where the engine goes.
        compute_capability: Of the GPU that it is for.
        profiles: Shapes of every input, for each profile.
        options: Properties of the engine.
        plugins: Whether the graph's operators run as plugins.
        timing_cache: The file of kernel timings that builds share; None to keep none.
    """

    flavour: Flavour
    graph: Path
    engine: Path
    compute_capability: str
    profiles: tuple[Mapping[str, Shapes], ...]
    options: EngineOptions = field(default_factory=EngineOptions)
    plugins: bool = False
    timing_cache: Path | None = None

    @property
    def name(self) -> str:
        """The graph's name, as `decoder.full`."""
        return self.graph.name.removesuffix(".onnx")

    def to_json(self) -> str:
        """The job on one line."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        document = json.loads(text)
        for name in ("graph", "engine", "timing_cache"):
            if document[name] is not None:
                document[name] = Path(document[name])
        document["options"] = EngineOptions(**document["options"])
        document["profiles"] = tuple(
            {
                name: Shapes(*(tuple(shapes[place]) for place in ("min", "opt", "max")))
                for name, shapes in profile.items()
            }
            for profile in document["profiles"]
        )
        return cls(**document)
