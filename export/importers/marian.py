"""Marian and OPUS-MT (`marian`): norms after the sums, sinusoids, generation from padding."""

from collections.abc import Collection, Mapping
from typing import Any

from drl.export.importers.bart_layout import (
    Defaults,
    common_fields,
    make_import,
    refuse_other_norm_order,
    static_positions,
)
from drl.export.importers.mapping import Import
from drl.export.importers.options import Options
from drl.export.model import ModelConfig

DEFAULTS = Defaults(pad=58100, eos=0, start=58100)
ONE_VOCABULARY = "but one vocabulary and one word table for source and target are supported"


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint of Marian."""
    options = Options(values, "Marian")
    fields = common_fields(options, DEFAULTS, present) | static_positions(present)
    refuse_other_norm_order(options, before=False)
    options.refuse("share_encoder_decoder_embeddings", (True, None), ONE_VOCABULARY)
    options.refuse("decoder_vocab_size", (fields["vocab_size"], None), ONE_VOCABULARY)
    options.finish()
    config = ModelConfig(norm_position="post", **fields)
    return make_import(config, present)
