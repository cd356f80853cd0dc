"""What to build engines for, as chosen by whoever builds."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from drl.export.tensorrt.sizes import Sizes
from drl.runtime.backends.tensorrt.library import Flavour
from drl.runtime.backends.tensorrt.manifest import EngineOptions

Precision = Literal["fp16", "bf16", "fp8"]

_SIZE_OPTIONS = {
    "batch": "--batch",
    "source": "--source",
    "new_tokens": "--new-tokens",
    "beams": "--beams",
    "sources": "--sources",
    "capacity": "--cache",
}


@dataclass(frozen=True)
class BuildOptions:
    """How to build a bundle's engines.

    Attributes:
        flavour: Of TensorRT.
        targets: Compute capabilities of the GPUs to build for; none for this machine's.
        precision: Of the lowered graphs.
        sizes: Bounds of the named dimensions.
        candidates: How many of the largest logits the decoder tells; None for 64, or for the
            vocabulary if that is smaller.
        plugins: Whether routed layers run as plugins; None where the flavour takes them.
        engine: Properties of the engines.
        paths: Which paths to build; none for all.
        force: Build what is up to date, too.
        gate: Run the graphs first, to find values that the precision cannot hold.
        jobs: How many engines to build at a time.
        time_limit: Seconds for one engine; None for any.
        timing_cache: The folder of timing caches; None for one in the user's cache.
    """

    flavour: Flavour = "tensorrt"
    targets: tuple[str, ...] = ()
    precision: Precision = "fp16"
    sizes: Sizes = field(default_factory=Sizes)
    candidates: int | None = None
    plugins: bool | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    paths: tuple[str, ...] = ()
    force: bool = False
    gate: bool = True
    jobs: int = 1
    time_limit: float | None = None
    timing_cache: Path | None = None

    def arguments(self) -> tuple[str, ...]:
        """The options of `drl-build` that ask for the same engines on another machine."""
        words: list[str] = []
        if self.precision != "fp16":
            words += ["--precision", self.precision]
        for name, option in _SIZE_OPTIONS.items():
            if (value := getattr(self.sizes, name)) is not None:
                words += [option, str(value)]
        if self.candidates is not None:
            words += ["--candidates", str(self.candidates)]
        if self.plugins is not None:
            words.append("--plugins" if self.plugins else "--no-plugins")
        for item in fields(EngineOptions):
            if getattr(self.engine, item.name):
                words.append("--" + item.name.replace("_", "-"))
        return tuple(words)
