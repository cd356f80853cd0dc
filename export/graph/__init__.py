"""The canonical ONNX graphs, one emitter per module of the PyTorch model and named after it.

Emitters need names, shapes and configuration, never values; parity tests hold them to the model.
"""

from drl.export.graph.bridge import emit_bridge
from drl.export.graph.decoder import emit_decoder
from drl.export.graph.encoder import emit_encoder

__all__ = ["emit_bridge", "emit_decoder", "emit_encoder"]
