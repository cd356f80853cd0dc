"""What an export can be asked for; light to import, so that the command answers at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Target = Literal["portable", "ort-cpu"]
Precision = Literal["fp32"]


@dataclass(frozen=True)
class ExportOptions:
    """What to make of a checkpoint.

    Attributes:
        target: `portable` graphs run on any ONNX runtime of opset 24; `ort-cpu` ones use ONNX
            Runtime's own attention kernel over a shared cache.
        precision: Of weights and arithmetic.
        force: Whether to replace an existing bundle.
        verify: Whether to hold the bundle against the eager model.
        verify_against_transformers: Whether to hold the eager model against transformers too.
        rename: Our tensor names to the checkpoint's, where those differ; see `load_checkpoint`.
    """

    target: Target = "ort-cpu"
    precision: Precision = "fp32"
    force: bool = False
    verify: bool = True
    verify_against_transformers: bool = False
    rename: Mapping[str, str] | None = None


DEFAULTS = ExportOptions()
