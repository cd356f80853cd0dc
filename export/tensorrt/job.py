"""What one build process is told, as a line of JSON on its standard input."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from drl.plugins.cuda.plugin_nodes import PluginForm
from drl.runtime.backends.tensorrt.library import FIRST_PORTABLE, Flavour, sm
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
        plugins: That the graph has nodes of.
        timing_cache: The file of kernel timings that builds share; None to keep none.
    """

    flavour: Flavour
    graph: Path
    engine: Path
    compute_capability: str
    profiles: tuple[Mapping[str, Shapes], ...]
    options: EngineOptions = field(default_factory=EngineOptions)
    plugins: tuple[PluginForm, ...] = ()
    timing_cache: Path | None = None

    @property
    def name(self) -> str:
        """The graph's name, as `decoder.full`."""
        return self.graph.name.removesuffix(".onnx")

    @property
    def plugin_architecture(self) -> int:
        """Compute capability, without the point, that plugins are compiled for.

        Their code is loaded on that and on later GPUs, so engines that move have the earliest.
        """
        if self.options.hardware_compatible:
            return FIRST_PORTABLE[0] * 10 + FIRST_PORTABLE[1]
        return int(sm(self.compute_capability))

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
        document["plugins"] = tuple(
            PluginForm(form["operator"], tuple(form["inputs"])) for form in document["plugins"]
        )
        document["profiles"] = tuple(
            {
                name: Shapes(*(tuple(shapes[place]) for place in ("min", "opt", "max")))
                for name, shapes in profile.items()
            }
            for profile in document["profiles"]
        )
        return cls(**document)
