"""Importers of other checkpoints: one file per family, each mapping names and configuration.

`find_importer` picks one by the `model_type` of `config.json`. Nothing of a checkpoint is executed.
"""

from collections.abc import Mapping
from typing import Any

from drl.export.importers import (
    bart,
    double_layer_router,
    m2m_100,
    marian,
    mbart,
    nllb_moe,
    own,
    pegasus,
    switch,
    t5,
)
from drl.export.importers.mapping import Import, Importer, Source
from drl.runtime.errors import ConfigError

OWN_TYPE = "drl"
FAMILIES: Mapping[str, Importer] = {
    OWN_TYPE: own.describe,
    "t5": t5.describe,
    "mt5": t5.describe,
    "umt5": t5.describe,
    "switch_transformers": switch.describe,
    "bart": bart.describe,
    "mbart": mbart.describe,
    "pegasus": pegasus.describe,
    "marian": marian.describe,
    "m2m_100": m2m_100.describe,
    "nllb-moe": nllb_moe.describe,
    "double_layer_router": double_layer_router.describe,
}
_DECODER_ONLY = ("CausalLM", "LMHeadModel")
_ENCODER_ONLY = ("MaskedLM", "SequenceClassification", "TokenClassification", "PreTraining")

__all__ = ["FAMILIES", "OWN_TYPE", "Import", "Importer", "Source", "find_importer"]


def find_importer(values: Mapping[str, Any]) -> Importer:
    """Return the importer of a parsed `config.json`; one without `model_type` is ours.

    Raises:
        ConfigError: There is no importer for it; the message says what it is.
    """
    kind = values.get("model_type", OWN_TYPE)
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    known = ", ".join(sorted(FAMILIES))
    raise ConfigError(f"model_type {kind!r} {_what_it_is(values)}; known are {known}")


def _what_it_is(values: Mapping[str, Any]) -> str:
    names = " ".join(map(str, values.get("architectures") or ()))
    if values.get("is_encoder_decoder") or "ConditionalGeneration" in names:
        return "is an encoder-decoder family without an importer"
    if any(mark in names for mark in _DECODER_ONLY):
        return "is a decoder-only model, and DRL deploys encoder-decoder ones"
    if any(mark in names for mark in _ENCODER_ONLY):
        return "is an encoder-only model, and DRL deploys encoder-decoder ones"
    return "has no importer"
