"""What building did, for people and for programs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineReport:
    """One engine.

    Attributes:
        name: The graph's name.
        reason: Why it was built; nothing for one that is up to date.
        seconds: That parsing and building took, this time or when it was built.
        bytes: Of its file.
    """

    name: str
    reason: str
    seconds: float
    bytes: int


@dataclass(frozen=True)
class FolderReport:
    """The engines for one GPU.

    Attributes:
        folder: Where they lie.
        compute_capability: Of the GPU.
        engines: Of this bundle, in the order of its paths.
        removed: Engines that were there, do not fit the bundle any more, and were not asked for;
            with the reason.
    """

    folder: str
    compute_capability: str
    engines: tuple[EngineReport, ...]
    removed: dict[str, str]


@dataclass(frozen=True)
class BuildReport:
    """One run of `drl-build`.

    Attributes:
        flavour: Of TensorRT.
        library_version: Of the library that built.
        precision: Of the lowered graphs.
        capacity: Positions of the KV cache.
        candidates: How many of the largest logits the decoder tells.
        plugins: Whether routed layers run as plugins.
        gate: `passed`, `skipped`, or `not needed` where nothing was built or the precision cannot
            overflow.
        lowering_seconds: That lowering took.
        seconds: That everything took.
        folders: One for each GPU.
        warnings: What is worth knowing.
    """

    flavour: str
    library_version: str
    precision: str
    capacity: int
    candidates: int
    plugins: bool
    gate: str
    lowering_seconds: float
    seconds: float
    folders: tuple[FolderReport, ...]
    warnings: tuple[str, ...]
