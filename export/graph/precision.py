"""The emitter for a precision."""

from drl.export.graph.emitter import Emitter
from drl.export.graph.full_precision import FullPrecisionEmitter
from drl.export.graph.quantized import QuantizedEmitter
from drl.export.model import ModelConfig
from drl.export.options import Precision
from drl.export.packed_weights import FORMATS
from drl.export.weights import WeightPlan


def open_emitter(
    name: str, config: ModelConfig, weights: WeightPlan, precision: Precision
) -> Emitter:
    """Return an emitter for the graph called `name`."""
    if precision == "fp32":
        return FullPrecisionEmitter(name, config, weights)
    return QuantizedEmitter(name, config, weights, FORMATS[precision])
