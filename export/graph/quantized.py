"""Products with int8 and int4 weights, each one operator with what stands around it."""

from dataclasses import dataclass

import onnx_ir as ir

from drl.export.graph.emitter import FLOAT, UINT8, AddTo, Emitter, HeadValues, Normed, States
from drl.export.graph.kv_cache import CACHE_FORMS
from drl.export.model import ModelConfig
from drl.export.model.feed_forward import is_gated
from drl.export.packed_weights import Formats, PackedParts, each_transposed, joined, stacked
from drl.export.weights import Maker, WeightPlan, stored_as_is
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


class QuantizedEmitter(Emitter):
    """Emits packed weights, and products that do norm, bias, activation and residual in passing."""

    ranks = True
    fuses = True

    def __init__(
        self, name: str, config: ModelConfig, weights: WeightPlan, formats: Formats
    ) -> None:
        super().__init__(name, config, weights)
        self._formats = formats
        self.cache = CACHE_FORMS[formats.kv_cache]

    def linear(self, name: str, x: States, *, residual: ir.Value | None = None) -> ir.Value:
        """See `Emitter.linear`."""
        return self._linear(name, x, "none", residual)

    def projections(self, x: States) -> tuple[ir.Value, ir.Value, ir.Value]:
        """See `Emitter.projections`; the three matrices are one above the other."""
        config = self.config
        queries, keys = config.num_heads * config.head_dim, config.kv_heads * config.head_dim
        columns = queries + 2 * keys
        names = [f"{self.path(side)}.weight" for side in "qkv"]
        weight = self._pack(self.path("qkv"), (1, columns, config.d_model), joined(names))
        bias = None
        if config.bias:
            biases = joined([f"{self.path(side)}.bias" for side in "qkv"])
            bias = self.tensor(self.path("qkv.bias"), FLOAT, (columns,), biases)
        states, norm = _split(x)
        projected: tuple[ir.Value, ir.Value, ir.Value] = QUANTIZED_PROJECTIONS.emit(
            self.op,
            *(states, weight.values, weight.scale, weight.multiplier, norm, bias),
            query_columns=queries,
            kv_columns=keys,
            epsilon=config.norm_eps,
            layout=LAYOUT,
        )
        return projected

    def inner(self, x: States) -> ir.Value:
        """See `Emitter.inner`; a gate and what it opens are one stack."""
        activation = self.config.activation
        if not is_gated(activation):
            return self._linear("up", x, activation)
        columns, depth = self.shape(self.path("up.weight"))
        weights = stacked([self.path(f"{name}.weight") for name in ("gate", "up")])
        weight = self._pack(self.path("gate_up"), (2, columns, depth), weights)
        bias = None
        if self.config.bias:
            biases = joined([self.path(f"{name}.bias") for name in ("gate", "up")])
            bias = self.tensor(self.path("gate_up.bias"), FLOAT, (2 * columns,), biases)
        return self._product(x, weight, columns, activation, bias)

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
        x, norm = _split(states)
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

    def _linear(
        self, name: str, x: States, activation: str, residual: ir.Value | None = None
    ) -> ir.Value:
        with self.scope(name):
            path = self.path("weight")
            columns, depth = self.shape(path)
            weight = self._pack(path, (1, columns, depth), stored_as_is(path))
            bias = self.weight("bias") if self.has("bias") else None
            return self._product(x, weight, columns, activation, bias, residual)

    def _product(
        self,
        x: States,
        weight: Packed,
        columns: int,
        activation: str,
        bias: ir.Value | None,
        residual: ir.Value | None = None,
    ) -> ir.Value:
        states, norm = _split(x)
        y: ir.Value = QUANTIZED_LINEAR.emit(
            self.op,
            *(states, weight.values, weight.scale, weight.multiplier, norm, bias, residual),
            columns=columns,
            activation=activation,
            epsilon=self.config.norm_eps,
            layout=LAYOUT,
        )
        return y

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


def _split(x: States) -> tuple[ir.Value, ir.Value | None]:
    return (x.x, x.weight) if isinstance(x, Normed) else (x, None)
