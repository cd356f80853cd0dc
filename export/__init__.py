"""Checkpoints in, bundles out: the exporter and the PyTorch model that it starts from.

`export` is the whole recipe; `drl-export` calls it. Names are imported when they are first used,
so that the command can say what is missing where PyTorch is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drl.export.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from drl.export.exporter import ExportReport, export
    from drl.export.options import ExportOptions
    from drl.export.parity import ParityReport
    from drl.export.quantization_report import QuantizationReport
else:
    _MODULES = {
        "Checkpoint": "checkpoint",
        "ExportOptions": "options",
        "ExportReport": "exporter",
        "ParityReport": "parity",
        "QuantizationReport": "quantization_report",
        "export": "exporter",
        "load_checkpoint": "checkpoint",
        "save_checkpoint": "checkpoint",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "Checkpoint",
    "ExportOptions",
    "ExportReport",
    "ParityReport",
    "QuantizationReport",
    "export",
    "load_checkpoint",
    "save_checkpoint",
]
