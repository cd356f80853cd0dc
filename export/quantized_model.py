"""The model that a quantised bundle computes, in eager PyTorch: its weights and roundings."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from drl.export.checkpoint import Checkpoint
from drl.export.model import DualRouterModel, ModelConfig
from drl.export.model.attention import (
    CrossAttention,
    LayerCache,
    SelfAttention,
    SelfAttentionInput,
)
from drl.export.model.experts import Experts
from drl.export.model.group_router import GroupChoice
from drl.export.packed_weights import Formats, pack
from drl.plugins.ops.packing import Format, quantize_rows, unpack
from drl.plugins.ops.state_rows import dequantize_states, quantize_states

_LAYER = r"(encoder|decoder)\.layers\.\d+\."
_MATRIX = re.compile(_LAYER + r".*\b(q|k|v|o|up|gate|down)")
_EXPERTS = re.compile(_LAYER + r"ffn\.experts")
_ATTENTION = re.compile(r"decoder\.layers\.\d+\.(self|cross)_attention")


class QuantizedModel(DualRouterModel):
    """A model whose products read rounded rows; level 1 of its routing is left as it was.

    Args:
        config: The model's configuration.
        words: The embeddings that level 1 was made from, by the names of their modules.
        rounds_states: Whether caches and encoder states hold rounded keys and values.
    """

    def __init__(
        self, config: ModelConfig, words: Mapping[str, Tensor], *, rounds_states: bool = False
    ) -> None:
        super().__init__(config)
        self._words = words
        if rounds_states:
            self._round_attention(config)
        for name, module in list(self.named_modules()):
            if _EXPERTS.fullmatch(name):
                self.set_submodule(name, _QuantizedExperts(config))
            elif _MATRIX.fullmatch(name):
                module.register_forward_pre_hook(_round_input)
        self.decoder.register_forward_hook(_round_states)

    def _round_attention(self, config: ModelConfig) -> None:
        for name, module in list(self.named_modules()):
            if _ATTENTION.fullmatch(name):
                own = isinstance(module, SelfAttention)
                rounded: nn.Module = (
                    _RoundedSelfAttention(config, bidirectional=False)
                    if own
                    else _RoundedCrossAttention(config)
                )
                self.set_submodule(name, rounded)

    def embed(
        self, tokens: Tensor, table: nn.Embedding | None = None
    ) -> tuple[Tensor, GroupChoice | None]:
        """See `DualRouterModel.embed`."""
        embedded, groups = super().embed(tokens, table)
        if self.group_router is None:
            return embedded, groups
        target = table is not None and table is self.decoder_embedding
        words = self._words["decoder_embedding" if target else "embedding"]
        return embedded, self.group_router(words[tokens])


def quantized_model(checkpoint: Checkpoint, formats: Formats) -> DualRouterModel:
    """Load a checkpoint into an eager model that computes what a bundle of `formats` does.

    Which weights are rounded is worked out from their names and not from the graphs, so that a
    bundle that mixes them up differs from this model.
    """
    config = checkpoint.config
    tables = ["embedding", *([] if config.shared_embedding else ["decoder_embedding"])]
    words = {name: checkpoint.tensor(f"{name}.weight") for name in tables}
    with torch.device("meta"):
        model = QuantizedModel(config, words, rounds_states=formats.kv_cache == "int8")
    state = {name: _tensor(checkpoint, name, formats) for name in checkpoint.shapes}
    model.load_state_dict(state, assign=True)
    target = config.target_embedding
    if config.tie_embeddings and not formats.packs_embedding(config, target):
        model.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False, device="meta")
        head = _round_trip(formats.head, checkpoint.tensor(f"{target}.weight"))
        model.lm_head.weight = nn.Parameter(head)
    return model.eval()


class _QuantizedExperts(Experts):
    """Experts whose two products read rounded rows."""

    def run(self, expert: int, x: Tensor) -> Tensor:
        return super().run(expert, round_rows(x))

    def inner(self, expert: int, x: Tensor) -> Tensor:
        return round_rows(super().inner(expert, x))


class _RoundedCache(LayerCache):
    """A cache that rounds what is written to it."""

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        super().write(round_heads(keys), round_heads(values), slots)


class _RoundedSelfAttention(SelfAttention):
    """Self-attention over a cache of rounded keys and values."""

    def forward(
        self, x: Tensor, shared: SelfAttentionInput, cache: LayerCache | None = None
    ) -> Tensor:
        rounded = None if cache is None else _RoundedCache(cache.keys, cache.values)
        return super().forward(x, shared, rounded)


class _RoundedCrossAttention(CrossAttention):
    """Cross-attention to rounded keys and values."""

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().project(states)
        return round_heads(keys), round_heads(values)


def round_heads(x: Tensor) -> Tensor:
    """Return keys or values `[..., h]` as a cache of int8 holds them."""
    return torch.from_numpy(dequantize_states(quantize_states(x.detach().contiguous().numpy())))


def round_rows(x: Tensor) -> Tensor:
    """Return `x` `[..., K]` as the kernels read it: every row in 255 steps."""
    values, scales = quantize_rows(x.detach().numpy())
    return torch.from_numpy(values) * torch.from_numpy(scales)[..., None]


def _round_input(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (round_rows(inputs[0]),)


def _round_states(_: nn.Module, __: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """Round what the head reads."""
    return round_rows(output[0]), output[1]


def _round_trip(format: Format, weight: Tensor) -> Tensor:
    """Return a weight `[N, K]` or `[M, N, K]` as it is after packing."""
    return torch.from_numpy(unpack(pack(format, weight))).reshape(weight.shape)


def _tensor(checkpoint: Checkpoint, name: str, formats: Formats) -> Tensor:
    weight = checkpoint.tensor(name)
    module, _, kind = name.rpartition(".")
    if _EXPERTS.fullmatch(module) and kind in ("up", "gate", "down"):  # stored as [in, out]
        return _round_trip(formats.layers, weight.transpose(1, 2)).transpose(1, 2)
    if kind != "weight":
        return weight
    if _MATRIX.fullmatch(module):
        return _round_trip(formats.layers, weight)
    if module == "lm_head" or formats.packs_embedding(checkpoint.config, module):
        return _round_trip(formats.head, weight)
    return weight
