"""Products with fp32 weights in panels, as operators with native kernels."""

import numpy as np
import onnx_ir as ir
import torch

from drl.export.checkpoint import Checkpoint
from drl.export.graph.emitter import FLOAT, AddTo, HeadValues, States
from drl.export.graph.full_precision import emit_embedding, emit_experts, emit_head_weights
from drl.export.graph.fused import FusedEmitter, Given
from drl.export.graph.norms import emit_normed
from drl.export.weights import Maker
from drl.plugins.ops import HEAD, LINEAR, PROJECTIONS
from drl.plugins.ops.panels import pack_panels, panel_shape


class PanelEmitter(FusedEmitter):
    """Emits the matrices of dense layers in panels, and all others as they are in other graphs.

    Embeddings, experts and heads are the larger part of a model, and other graphs need them too:
    they are not stored twice.
    """

    linear_operator = LINEAR
    projections_operator = PROJECTIONS

    def laid_out(self, path: str, shape: tuple[int, int, int], source: Maker) -> Given:
        """See `FusedEmitter.laid_out`."""
        return [self.tensor(f"{path}.panels", FLOAT, panel_shape(*shape), _in_panels(source))]

    def experts(
        self,
        x: ir.Value,
        route: tuple[ir.Value, ir.Value],
        residual: ir.Value,
        shared: AddTo | None,
    ) -> ir.Value:
        """See `Emitter.experts`; the shared expert adds the residual."""
        total = residual if shared is None else shared(residual)
        return self.op.Add(total, emit_experts(self, x, route))

    def embedding(self, table: str, tokens: ir.Value) -> ir.Value:
        """See `Emitter.embedding`."""
        return emit_embedding(self, table, tokens)

    def head(self, states: States, candidates: ir.Value | None) -> HeadValues:
        """See `Emitter.head`."""
        weight, bias = emit_head_weights(self)
        with self.scope("head"):
            x = emit_normed(self, states)
            logits, values, ids, normalisers = HEAD.emit(
                self.op, x, weight, candidates, bias, factor=self.config.output_scale
            )
        return HeadValues(logits, normalisers, (values, ids))


def _in_panels(source: Maker) -> Maker:
    def make(checkpoint: Checkpoint) -> torch.Tensor:
        weight = source(checkpoint).detach().numpy()
        stacked = weight[np.newaxis] if weight.ndim == 2 else weight
        return torch.from_numpy(pack_panels(stacked))

    return make
