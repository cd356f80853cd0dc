"""The eager dual-router model as a model of transformers, so that its `generate` can search it."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from drl.export.model import DualRouterModel
from drl.export.model.decoder import CrossMemory


class _Config(PretrainedConfig):
    model_type = "drl"


class _Encoder(nn.Module):
    """What `generate` calls once per source; the path's view of the source is kept aside."""

    main_input_name = "input_ids"

    def __init__(self, model: DualRouterModel, path: int) -> None:
        super().__init__()
        self.model = model
        self.path = path
        self.memory: CrossMemory | None = None

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        encoded = self.model.encode(input_ids, torch.tensor([input_ids.shape[1]]))
        self.memory = self.model.bridge(encoded, self.path)
        return BaseModelOutput(last_hidden_state=encoded.states)


class EagerSearch(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """One path of a dual-router model, for one source at a time and without a cache."""

    config_class = _Config
    main_input_name = "input_ids"

    def __init__(self, model: DualRouterModel, path: int) -> None:
        given = model.config
        tokens = {
            "pad_token_id": given.pad_token_id,
            "eos_token_id": given.eos_token_id,
            "decoder_start_token_id": given.decoder_start_token_id,
        }
        super().__init__(
            _Config(is_encoder_decoder=True, vocab_size=given.vocab_size, use_cache=False, **tokens)
        )
        self.generation_config = GenerationConfig(use_cache=False, **tokens)
        self.encoder = _Encoder(model, path)
        self.eval()

    def get_encoder(self, *_: Any, **__: Any) -> nn.Module:
        return self.encoder

    def prepare_inputs_for_generation(self, tokens: Tensor, **_: Any) -> dict[str, Any]:
        return {"decoder_input_ids": tokens}

    def forward(self, decoder_input_ids: Tensor, **_: Any) -> Seq2SeqLMOutput:
        rows, length = decoder_input_ids.shape
        memory = self.encoder.memory
        assert memory is not None
        expanded = replace(
            memory,
            bias=memory.bias.expand(rows, -1),
            keys={layer: each.expand(rows, -1, -1, -1) for layer, each in memory.keys.items()},
            values={layer: each.expand(rows, -1, -1, -1) for layer, each in memory.values.items()},
        )
        lengths = torch.full((rows,), length)
        logits, _ = self.encoder.model.decode(decoder_input_ids, lengths, expanded)
        return Seq2SeqLMOutput(logits=logits)
