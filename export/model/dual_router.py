"""The whole model: embedding, routers, encoder, decoder and head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drl.export.model.attention import MASKED
from drl.export.model.config import ModelConfig
from drl.export.model.decoder import CrossMemory, Decoder, KVCache
from drl.export.model.encoder import Encoder
from drl.export.model.experts import ExpertRouter, Experts, Route
from drl.export.model.group_router import GroupChoice, GroupRouter
from drl.export.model.path_router import PathRouter, PathScores, keep_counts, select_states
from drl.export.model.positions import AbsolutePositions


@dataclass(frozen=True)
class Encoded:
    """The encoder's view of a batch of sources.

    Attributes:
        states: `[B, S, d]`.
        lengths: int64 `[B]`, tokens of each source.
        source_mask: bool `[B, S]`.
        groups: Level-1 routing `[B, S, G]`, or None if nothing routes.
        scores: The path router's saliency and logits, or None without a path router.
        routes: One per sparse encoder layer.
    """

    states: Tensor
    lengths: Tensor
    source_mask: Tensor
    groups: GroupChoice | None
    scores: PathScores | None
    routes: list[Route]


@dataclass(frozen=True)
class ModelOutput:
    """Logits `[B, T, V]` of one path, the encoder's output and the routes the decoder took."""

    logits: Tensor
    encoded: Encoded
    routes: list[Route]


class DualRouterModel(nn.Module):
    """An encoder-decoder Transformer with two levels of token routing and a path router."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.decoder_embedding = (
            None if config.shared_embedding else nn.Embedding(config.vocab_size, config.d_model)
        )
        self.group_router = (
            GroupRouter(config.groups, config.d_model, config.top_groups)
            if config.routes_tokens and config.groups > 1
            else None
        )
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.path_router = (
            PathRouter(config, config.path_router) if config.path_router is not None else None
        )
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.d_model, config.vocab_size, bias=False)
        )
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh weights: unit embeddings, projections scaled by their input width."""
        if self.embedding.weight.is_meta:
            return  # a model of names and shapes only
        self.embedding.weight.normal_()
        if self.decoder_embedding is not None:
            self.decoder_embedding.weight.normal_()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, ExpertRouter):
                module.weight.normal_(std=module.weight.shape[1] ** -0.5)
            elif isinstance(module, Experts):
                for weight in (module.gate, module.up, module.down):
                    if weight is not None:
                        weight.normal_(std=weight.shape[1] ** -0.5)
            elif isinstance(module, AbsolutePositions) and module.weight is not None:
                module.weight.normal_()
        if self.group_router is not None:
            self.group_router.initialise(self.embedding.weight)

    @property
    def target_embedding(self) -> nn.Embedding:
        """What embeds target tokens, and with a tied head predicts them."""
        return self.embedding if self.decoder_embedding is None else self.decoder_embedding

    def embed(
        self, tokens: Tensor, table: nn.Embedding | None = None
    ) -> tuple[Tensor, GroupChoice | None]:
        """Look up `tokens` int64 `[B, T]`: embeddings `[B, T, d]` and level-1 routing.

        Args:
            tokens: Token ids.
            table: What to look them up in; by default the embedding of source tokens.
        """
        embedded = (self.embedding if table is None else table)(tokens)
        if self.group_router is not None:
            return embedded, self.group_router(embedded)
        if not self.config.routes_tokens:
            return embedded, None
        shape = (*tokens.shape, 1)  # a single group has probability 1
        device = tokens.device
        one = torch.ones(shape, dtype=torch.bool, device=device)
        return embedded, GroupChoice(torch.zeros(shape, device=device), one)

    def encode(self, source: Tensor, lengths: Tensor, budget: Tensor | None = None) -> Encoded:
        """Encode right-padded sources.

        Args:
            source: int64 `[B, S]`.
            lengths: Tokens of each row, `[B]`.
            budget: fp32 `[B]` in [0, 1], 1 by default; part of the path router's model state.
        """
        mask = torch.arange(source.shape[1], device=source.device) < lengths[:, None]
        embedded, groups = self.embed(source)
        states, routes = self.encoder(embedded, mask, groups)
        scores = None
        if self.path_router is not None:
            assert groups is not None  # a path router implies a group router
            limit = torch.ones(len(lengths), device=source.device) if budget is None else budget
            scores = self.path_router(states, mask, groups, limit)
        return Encoded(states, lengths.long(), mask, groups, scores, routes)

    def bridge(self, encoded: Encoded, path: int) -> CrossMemory:
        """Select the states that path `path` keeps and project them for its layers."""
        chosen = self.config.paths[path]
        if encoded.scores is None:
            bias = torch.zeros(encoded.source_mask.shape, device=encoded.states.device)
            bias = bias.masked_fill(~encoded.source_mask, MASKED)
            return self.decoder.memory(encoded.states, bias, chosen)
        counts = keep_counts(encoded.lengths, chosen)
        states, bias = select_states(
            encoded.states, encoded.scores.saliency, encoded.lengths, counts
        )
        return self.decoder.memory(states, bias, chosen)

    def decode(
        self,
        tokens: Tensor,
        new_lengths: Tensor,
        memory: CrossMemory,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, list[Route]]:
        """Return the logits `[B, T, V]` after each of `tokens` int64 `[B, T]`, and the routes."""
        embedded, groups = self.embed(tokens, self.target_embedding)
        states, routes = self.decoder(embedded, new_lengths, groups, memory, cache)
        head = self.target_embedding.weight if self.lm_head is None else self.lm_head.weight
        logits = states @ head.T * self.config.output_scale
        return (logits if self.head_bias is None else logits + self.head_bias), routes

    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        target: Tensor,
        target_lengths: Tensor,
        path: int,
        budget: Tensor | None = None,
    ) -> ModelOutput:
        """Run teacher-forced: logits `[B, T, V]` after each target token, on one path.

        Args:
            source: int64 `[B, S]`, right-padded.
            source_lengths: `[B]`.
            target: Decoder input int64 `[B, T]`, start token first, right-padded.
            target_lengths: `[B]`.
            path: Index of the path that all sequences take.
            budget: fp32 `[B]`, see `encode`.
        """
        encoded = self.encode(source, source_lengths, budget)
        logits, routes = self.decode(target, target_lengths, self.bridge(encoded, path))
        return ModelOutput(logits, encoded, routes)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter that a model of this configuration has."""
    with torch.device("meta"):
        model = DualRouterModel(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
