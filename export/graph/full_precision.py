"""Products with fp32 weights, as standard operators."""

import onnx_ir as ir

from drl.export.graph.emitter import AddTo, Emitter, HeadValues, States
from drl.export.model.feed_forward import is_gated
from drl.plugins.ops import ROUTED_FFN


class FullPrecisionEmitter(Emitter):
    """Emits fp32 weights, [in, out] as `MatMul` reads them, and every step as a node."""

    ranks = False
    fuses = False

    def linear(self, name: str, x: States, *, residual: ir.Value | None = None) -> ir.Value:
        """See `Emitter.linear`."""
        with self.scope(name):
            y = self.op.MatMul(x, self.matrix("weight"))
            y = self.op.Add(y, self.weight("bias")) if self.has("bias") else y
        return y if residual is None else self.op.Add(residual, y)

    def projections(self, x: States) -> tuple[ir.Value, ir.Value, ir.Value]:
        """See `Emitter.projections`."""
        return self.linear("q", x), self.linear("k", x), self.linear("v", x)

    def inner(self, x: States) -> ir.Value:
        """See `Emitter.inner`."""
        up = self.linear("up", x)
        if not is_gated(self.config.activation):
            return self._activate(up)
        return self.op.Mul(self._activate(self.linear("gate", x)), up)

    def experts(
        self,
        x: ir.Value,
        route: tuple[ir.Value, ir.Value],
        residual: ir.Value,
        shared: AddTo | None,
    ) -> ir.Value:
        """See `Emitter.experts`."""
        y = emit_experts(self, x, route)
        if shared is not None:
            y = self.op.Add(shared(None), y)
        return self.op.Add(residual, y)

    def embedding(self, table: str, tokens: ir.Value) -> ir.Value:
        """See `Emitter.embedding`."""
        return emit_embedding(self, table, tokens)

    def head(self, states: States, candidates: ir.Value | None) -> HeadValues:
        """See `Emitter.head`; [V, d] as in the checkpoint, so that a tied one is stored once."""
        op, config = self.op, self.config
        weight, bias = emit_head_weights(self)
        with self.scope("head"):
            rows = op.Reshape(states, [-1, config.d_model])
            biases = [] if bias is None else [bias]
            logits = op.Gemm(rows, weight, *biases, transB=1, alpha=config.output_scale)
            # Runtimes have a fast LogSoftmax and a slow ReduceLogSumExp. The likeliest token tells
            # by how much it shifts a row.
            likeliest = op.ReduceMax(op.LogSoftmax(logits, axis=-1), [-1], keepdims=0)
            shifts = op.Sub(op.ReduceMax(logits, [-1], keepdims=0), likeliest)
            places = op.Shape(states, start=0, end=2)
            shape = op.Concat(places, [config.vocab_size], axis=0)
            return HeadValues(op.Reshape(logits, shape), op.Reshape(shifts, places))

    def _activate(self, x: ir.Value) -> ir.Value:
        kind = self.config.activation
        if kind in ("silu", "silu_glu"):
            return self.op.Swish(x)
        if kind == "relu":
            return self.op.Relu(x)
        return self.op.Gelu(x, approximate="none" if kind == "gelu" else "tanh")


def emit_experts(e: Emitter, x: ir.Value, route: tuple[ir.Value, ir.Value]) -> ir.Value:
    """Emit the `Experts` in scope, with weights as they are: `[B, T, d]` to `[B, T, d]`."""
    with e.scope("experts"):
        names = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")
        weights = [e.weight(name) if e.has(name) else None for name in names]
        y: ir.Value = ROUTED_FFN.emit(e.op, x, *route, *weights, activation=e.config.activation)
        return y


def emit_embedding(e: Emitter, table: str, tokens: ir.Value) -> ir.Value:
    """Emit the lookup of `tokens` int64 `[B, T]` in the embedding `table`, as it is."""
    with e.scope(table):
        return e.op.Gather(e.weight("weight"), tokens)


def emit_head_weights(e: Emitter) -> tuple[ir.Value, ir.Value | None]:
    """Emit the head's weight `[V, d]`, as it is or as the embedding's, and its bias `[V]`."""
    config = e.config
    with e.scope(config.target_embedding if config.tie_embeddings else "lm_head"):
        weight = e.weight("weight")
    return weight, e.weight_of("head_bias") if config.head_bias else None
