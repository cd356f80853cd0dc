"""Our own checkpoints: nothing to map."""

from collections.abc import Collection, Mapping
from typing import Any

from drl.export.importers.mapping import Import, same
from drl.export.model import ModelConfig, parameter_shapes


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint whose tensors have our names."""
    del present
    fields = {name: value for name, value in values.items() if name != "model_type"}
    config = ModelConfig.from_dict(fields)
    return Import(config, {name: same(name) for name in parameter_shapes(config)})
