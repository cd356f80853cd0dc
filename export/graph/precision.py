"""The emitter for a precision."""

from drl.export.graph.emitter import Emitter
from drl.export.graph.full_precision import FullPrecisionEmitter
from drl.export.graph.quantized import QuantizedEmitter
from drl.export.model import ModelConfig
from drl.export.options import KvCache, Precision
from drl.export.packed_weights import formats_of
from drl.export.weights import WeightPlan


def open_emitter(
    name: str,
    config: ModelConfig,
    weights: WeightPlan,
    precision: Precision,
    kv_cache: KvCache = "fp32",
) -> Emitter:
    """Return an emitter for the graph called `name`; with fp32 weights the cache is fp32 too."""
    if precision == "fp32":
        return FullPrecisionEmitter(name, config, weights)
    return QuantizedEmitter(name, config, weights, formats_of(precision, kv_cache))
