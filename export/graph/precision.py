"""The emitter for a precision."""

from drl.export.graph.emitter import Emitter
from drl.export.graph.full_precision import FullPrecisionEmitter
from drl.export.graph.panels import PanelEmitter
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
    *,
    panels: bool = False,
) -> Emitter:
    """Return an emitter for the graph called `name`; with fp32 weights the cache is fp32 too.

    Args:
        name: The graph's name.
        config: The model's configuration.
        weights: The plan of the weights file.
        precision: Of the weights.
        kv_cache: Of keys and values, with weights of another precision than fp32.
        panels: Whether fp32 weights are in panels, for kernels of ours.
    """
    if precision != "fp32":
        return QuantizedEmitter(name, config, weights, formats_of(precision, kv_cache))
    emitter = PanelEmitter if panels else FullPrecisionEmitter
    return emitter(name, config, weights)
