"""Checkpoints in, bundles out: the exporter and the PyTorch model that it starts from.

`export` is the whole recipe; `drl-export` calls it.
"""

from drl.export.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from drl.export.exporter import ExportOptions, ExportReport, export
from drl.export.parity import ParityReport

__all__ = [
    "Checkpoint",
    "ExportOptions",
    "ExportReport",
    "ParityReport",
    "export",
    "load_checkpoint",
    "save_checkpoint",
]
