"""The dual-router model in PyTorch: the truth that everything exported is measured against.

Levels 1 and 2 of token routing are in `group_router` and `experts`, the path router in
`path_router`; `config` holds every size and choice.
"""

from drl.export.model.config import ModelConfig, PathConfig, PathRouterConfig
from drl.export.model.dual_router import DualRouterModel, Encoded, ModelOutput, parameter_shapes
from drl.export.model.experts import Route
from drl.export.model.generate import Generated, generate

__all__ = [
    "DualRouterModel",
    "Encoded",
    "Generated",
    "ModelConfig",
    "ModelOutput",
    "PathConfig",
    "PathRouterConfig",
    "Route",
    "generate",
    "parameter_shapes",
]
