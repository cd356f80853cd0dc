"""M2M-100 and NLLB-200 (`m2m_100`): norms before the sublayers, fairseq's sinusoids."""

from collections.abc import Collection, Mapping
from typing import Any

from drl.export.importers.bart_layout import Defaults, common_fields, make_import
from drl.export.importers.mapping import Import
from drl.export.importers.options import Options
from drl.export.model import ModelConfig

DEFAULTS = Defaults(pad=1, eos=2, start=2, activation="relu", scale_embedding=True)


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint of M2M-100 or of a dense NLLB model."""
    options = Options(values, "M2M-100")
    fields = common_fields(options, DEFAULTS, present) | fairseq_positions(options)
    options.finish()
    return make_import(ModelConfig(**fields), present)


def fairseq_positions(options: Options) -> dict[str, Any]:
    """Return the fields of sinusoids that count positions from the padding token's id + 1.

    Their d/2 frequencies are 10000^(-i / (d/2 - 1)), so the last one is exactly 1/10000.
    """
    pad = options.integer("pad_token_id", DEFAULTS.pad)
    start = options.integer("decoder_start_token_id", DEFAULTS.start)
    if start == pad:
        options.problem(
            f"`decoder_start_token_id` is {start}, the padding token, which has no position here"
        )
    return {
        "position": "sinusoidal",
        "position_offset": pad + 1,
        "sinusoid_width": options.integer("d_model") - 2,
    }
