"""The runtime: bundles in, text out. Needs NumPy, ONNX Runtime and tokenizers.

`Engine` is what applications embed; `Bundle` is the folder it runs.
"""

from drl.runtime.bundle import Bundle
from drl.runtime.engine import Engine
from drl.runtime.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    ConfigError,
    DrlError,
    ExportError,
    RequestError,
)
from drl.runtime.generation import GenerationConfig
from drl.runtime.results import Experts, GenerationResult, Piece, Timings

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DrlError",
    "Engine",
    "Experts",
    "ExportError",
    "GenerationConfig",
    "GenerationResult",
    "Piece",
    "RequestError",
    "Timings",
]
