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
from drl.runtime.processors import DecodingState, LogitsProcessor
from drl.runtime.request import Request
from drl.runtime.results import Experts, GenerationResult, Piece, Timings
from drl.runtime.scoring import Score

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DecodingState",
    "DrlError",
    "Engine",
    "Experts",
    "ExportError",
    "GenerationConfig",
    "GenerationResult",
    "LogitsProcessor",
    "Piece",
    "Request",
    "RequestError",
    "Score",
    "Timings",
]
