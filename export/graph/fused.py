"""Products that are one operator with what stands around them: norm, bias, activation, residual."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from drl.export.graph.emitter import FLOAT, Emitter, Normed, States
from drl.export.model.feed_forward import is_gated
from drl.export.weights import Maker, joined, stacked, stored_as_is
from drl.plugins.ops import Operator

Given = Sequence[ir.Value | None]
"""The inputs of an operator that a weight is given by."""


class FusedEmitter(Emitter):
    """Emits matrices in an order made for kernels, each for all that reads the same rows."""

    ranks = True
    fuses = True

    linear_operator: Operator
    """Reads the rows, a weight, norm, bias and residual."""
    projections_operator: Operator
    """Reads the rows, a weight, norm and bias."""

    @abstractmethod
    def laid_out(self, path: str, shape: tuple[int, int, int], source: Maker) -> Given:
        """Return what `source` makes, matrices [M, N, K], as tensors called after `path`."""

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that say how weights are laid out."""
        return {}

    def linear(self, name: str, x: States, *, residual: ir.Value | None = None) -> ir.Value:
        """See `Emitter.linear`."""
        return self._linear(name, x, "none", residual)

    def projections(self, x: States) -> tuple[ir.Value, ir.Value, ir.Value]:
        """See `Emitter.projections`; the three matrices are one above the other."""
        config = self.config
        queries, keys = config.num_heads * config.head_dim, config.kv_heads * config.head_dim
        columns = queries + 2 * keys
        names = [f"{self.path(side)}.weight" for side in "qkv"]
        weight = self.laid_out(self.path("qkv"), (1, columns, config.d_model), joined(names))
        bias = None
        if config.bias:
            biases = joined([f"{self.path(side)}.bias" for side in "qkv"])
            bias = self.tensor(self.path("qkv.bias"), FLOAT, (columns,), biases)
        states, norm = split(x)
        projected: tuple[ir.Value, ir.Value, ir.Value] = self.projections_operator.emit(
            self.op,
            *(states, *weight, norm, bias),
            query_columns=queries,
            kv_columns=keys,
            epsilon=config.norm_eps,
            **self.attributes(),
        )
        return projected

    def inner(self, x: States) -> ir.Value:
        """See `Emitter.inner`; a gate and what it opens are one stack."""
        activation = self.config.activation
        if not is_gated(activation):
            return self._linear("up", x, activation)
        columns, depth = self.shape(self.path("up.weight"))
        weights = stacked([self.path(f"{name}.weight") for name in ("gate", "up")])
        weight = self.laid_out(self.path("gate_up"), (2, columns, depth), weights)
        bias = None
        if self.config.bias:
            biases = joined([self.path(f"{name}.bias") for name in ("gate", "up")])
            bias = self.tensor(self.path("gate_up.bias"), FLOAT, (2 * columns,), biases)
        return self._product(x, weight, columns, activation, bias)

    def _linear(
        self, name: str, x: States, activation: str, residual: ir.Value | None = None
    ) -> ir.Value:
        with self.scope(name):
            path = self.path("weight")
            columns, depth = self.shape(path)
            weight = self.laid_out(path, (1, columns, depth), stored_as_is(path))
            bias = self.weight("bias") if self.has("bias") else None
            return self._product(x, weight, columns, activation, bias, residual)

    def _product(
        self,
        x: States,
        weight: Given,
        columns: int,
        activation: str,
        bias: ir.Value | None,
        residual: ir.Value | None = None,
    ) -> ir.Value:
        states, norm = split(x)
        y: ir.Value = self.linear_operator.emit(
            self.op,
            *(states, *weight, norm, bias, residual),
            columns=columns,
            activation=activation,
            epsilon=self.config.norm_eps,
            **self.attributes(),
        )
        return y


def split(x: States) -> tuple[ir.Value, ir.Value | None]:
    """Return states and the weight of the norm that is left to their reader, if there is one."""
    return (x.x, x.weight) if isinstance(x, Normed) else (x, None)
