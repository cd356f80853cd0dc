"""Random models of transformers' encoder-decoder families, whose searches vary and end anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tests.export.importers.bart_models import POST_NORM, SIZES
from tests.export.importers.reference import Drawing, draw
from tests.generation.transformers_search import LIMIT, search

_VOCABULARY = 80
_T5_SIZES: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 56,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_T5_DRAWING = Drawing(query=1.5 * _T5_SIZES["d_kv"] ** -0.5)
_PRE_NORM = Drawing(query=4.0, embedding=0.7)


@dataclass(frozen=True)
class Family:
    """A family, by the class that transformers has for it.

    Attributes:
        architecture: The class.
        config: Its configuration's arguments.
        drawing: How large the weights are.
        sharpness: Factor on the norm before the head, and so on the logits.
        seed: Of the weights; one with which many tokens come up.
        untie: Whether the head gets weights of its own, whatever the configuration says.
    """

    architecture: str
    config: dict[str, Any]
    drawing: Drawing
    sharpness: float
    seed: int = 0
    untie: bool = False


def _t5(kind: str, seed: int, untie: bool = False, **config: Any) -> Family:
    name = f"{kind}ForConditionalGeneration"
    return Family(name, _T5_SIZES | config, _T5_DRAWING, 2.5, seed, untie)


def _bart(name: str, seed: int, drawing: Drawing, **config: Any) -> Family:
    return Family(name, SIZES | config, drawing, 0.4 / drawing.embedding, seed)


FAMILIES = {
    "t5": _t5("T5", 0),
    "t5-v1.1": _t5("T5", 9, untie=True, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": _t5("MT5", 0, untie=True, num_heads=3, d_kv=12),
    "umt5": _t5("UMT5", 6),
    "switch": _t5(
        "SwitchTransformers",
        4,
        num_experts=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    ),
    "bart": _bart("BartForConditionalGeneration", 4, replace(POST_NORM, embedding=0.3)),
    "mbart": _bart("MBartForConditionalGeneration", 3, _PRE_NORM, decoder_start_token_id=78),
    "pegasus": _bart("PegasusForConditionalGeneration", 3, Drawing(query=4.0, embedding=1.5)),
    "marian": _bart(
        "MarianMTModel",
        7,
        Drawing(query=3.0, key=3.0, embedding=0.3),
        scale_embedding=True,
        decoder_vocab_size=_VOCABULARY,
        pad_token_id=79,
        decoder_start_token_id=79,
    ),
    "m2m100": _bart("M2M100ForConditionalGeneration", 3, _PRE_NORM),
}


def build(family: Family, sources: Sequence[Sequence[int]]) -> nn.Module:
    """Return a model, drawn and with an end token, in evaluation mode."""
    import transformers

    architecture = getattr(transformers, family.architecture)
    model: Any = architecture(architecture.config_class(**family.config)).eval()
    if family.untie:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight))
    draw(model, family.drawing, family.seed)
    _sharpen(model, family.sharpness)
    _choose_end(model, sources)
    return model


@torch.no_grad()
def _sharpen(model: Any, factor: float) -> None:
    decoder = model.get_decoder()
    for owner in (decoder, decoder.layers[-1] if hasattr(decoder, "layers") else decoder):
        for name in ("final_layer_norm", "layer_norm"):
            if hasattr(owner, name):
                getattr(owner, name).weight *= factor
                if hasattr(model, "final_logits_bias"):
                    model.final_logits_bias *= 0.3
                return


def _choose_end(model: Any, sources: Sequence[Sequence[int]]) -> None:
    """Make that token the end token which comes up at the most different steps of beams."""
    model.generation_config.eos_token_id = None
    found = [
        made.tokens
        for source in sources
        for made in search(model, source, {"num_beams": 4, "num_return_sequences": 4})
    ]

    def variety(token: int) -> tuple[int, int]:
        steps = [row.index(token) if token in row else LIMIT for row in found]
        return len({step for step in steps if step}), -sum(step == 0 for step in steps)

    special = {0, 1, 2, model.config.pad_token_id, model.config.decoder_start_token_id}
    end = max(sorted({token for row in found for token in row} - special), key=variety)
    model.config.eos_token_id = model.generation_config.eos_token_id = end
