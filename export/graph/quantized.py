"""Products with int8 and int4 weights, each one operator with what stands around it."""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from drl.export.graph.emitter import FLOAT, UINT8, AddTo, HeadValues, States
from drl.export.graph.fused import FusedEmitter, Given, split
from drl.export.graph.kv_cache import CACHE_FORMS
from drl.export.model import ModelConfig
from drl.export.packed_weights import Formats, PackedParts
from drl.export.weights import Maker, WeightPlan, each_transposed, stored_as_is
from drl.plugins.ops import (
    QUANTIZED_GATHER,
    QUANTIZED_HEAD,
    QUANTIZED_LINEAR,
    QUANTIZED_PROJECTIONS,
    QUANTIZED_ROUTED_FFN,
)
from drl.plugins.ops.packing import LAYOUT, Format, packed_shapes


@dataclass(frozen=True)
class Packed:
    """A packed weight in the graph: values uint8, scale fp32, the multiplier of blocks uint8."""

    values: ir.Value
    scale: ir.Value
    multiplier: ir.Value | None


class QuantizedEmitter(FusedEmitter):
    """Emits packed weights, those of experts, head and embedding included."""

    linear_operator = QUANTIZED_LINEAR
    projections_operator = QUANTIZED_PROJECTIONS

    def __init__(
        self, name: str, config: ModelConfig, weights: WeightPlan, formats: Formats
    ) -> None:
        super().__init__(name, config, weights)
        self._formats = formats
        self.cache = CACHE_FORMS[formats.kv_cache]

    def laid_out(self, path: str, shape: tuple[int, int, int], source: Maker) -> Given:
        """See `FusedEmitter.laid_out`."""
        weight = self._pack(path, shape, source)
        return [weight.values, weight.scale, weight.multiplier]

    def attributes(self) -> dict[str, Any]:
        """See `FusedEmitter.attributes`."""
        return {"layout": LAYOUT}

    def experts(
        self,
        x: ir.Value,
        route: tuple[ir.Value, ir.Value],
        residual: ir.Value,
        shared: AddTo | None,
    ) -> ir.Value:
        """See `Emitter.experts`; the shared expert adds the residual, and this one the sum."""
        total = residual if shared is None else shared(residual)
        with self.scope("experts"):
            up, down, gate = (self._expert(name) for name in ("up", "down", "gate"))
            assert up is not None
            assert down is not None
            biases = (
                self.weight(name) if self.has(name) else None
                for name in ("up_bias", "down_bias", "gate_bias")
            )
            opened = [gate.values, gate.scale, gate.multiplier] if gate else [None] * 3
            output: ir.Value = QUANTIZED_ROUTED_FFN.emit(
                self.op,
                *(x, *route, up.values, up.scale, down.values, down.scale),
                *(up.multiplier, down.multiplier, *opened, *biases, total),
                activation=self.config.activation,
                inner=self.config.d_expert,
                layout=LAYOUT,
            )
            return output

    def embedding(self, table: str, tokens: ir.Value) -> ir.Value:
        """See `Emitter.embedding`; the rows of a tied head of 8 bits serve as embedding too."""
        with self.scope(table):
            if not self._formats.packs_embedding(self.config, table):
                return self.op.Gather(self.weight("weight"), tokens)
            weight = self._head_weight()
            words: ir.Value = QUANTIZED_GATHER.emit(
                self.op,
                *(tokens, weight.values, weight.scale, weight.multiplier),
                depth=self.config.d_model,
                layout=LAYOUT,
            )
            return words

    def head(self, states: States, candidates: ir.Value | None) -> HeadValues:
        """See `Emitter.head`."""
        config = self.config
        with self.scope(config.target_embedding if config.tie_embeddings else "lm_head"):
            weight = self._head_weight()
        bias = self.weight_of("head_bias") if config.head_bias else None
        x, norm = split(states)
        with self.scope("head"):
            logits, values, ids, normalisers = QUANTIZED_HEAD.emit(
                self.op,
                *(x, weight.values, weight.scale, weight.multiplier, norm, bias, candidates),
                columns=config.vocab_size,
                factor=config.output_scale,
                epsilon=config.norm_eps,
                layout=LAYOUT,
            )
        return HeadValues(logits, normalisers, (values, ids))

    def _expert(self, name: str) -> Packed | None:
        if not self.has(name):
            return None
        path = self.path(name)
        experts, depth, columns = self.shape(path)
        return self._pack(path, (experts, columns, depth), each_transposed(path))

    def _head_weight(self) -> Packed:
        """Return the packed `weight` of the module in scope, in the format of the head."""
        path = self.path("weight")
        shape = (1, *self.shape(path))
        return self._pack(path, shape, stored_as_is(path), self._formats.head)

    def _pack(
        self, path: str, shape: tuple[int, ...], source: Maker, format: Format | None = None
    ) -> Packed:
        """Return what `source` makes, matrices [M, N, K], as packed tensors called after `path`."""
        chosen = self._formats.layers if format is None else format
        matrices, columns, depth = shape
        shapes = packed_shapes(chosen, matrices, columns, depth)
        parts = PackedParts(chosen, source)

        def part(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
            return self.tensor(f"{path}.{name}", dtype, shape, parts.maker(name))

        return Packed(
            part("packed", UINT8, shapes.values),
            part("scale", FLOAT, shapes.scales),
            None if shapes.multipliers is None else part("multiplier", UINT8, shapes.multipliers),
        )
