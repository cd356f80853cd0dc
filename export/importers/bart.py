"""BART (`bart`): norms after the sums, an embedding norm, learned positions."""

from collections.abc import Collection, Mapping
from typing import Any

from drl.export.importers.bart_layout import (
    Defaults,
    common_fields,
    make_import,
    refuse_other_norm_order,
)
from drl.export.importers.mapping import Import
from drl.export.importers.options import Options
from drl.export.model import ModelConfig

DEFAULTS = Defaults(pad=1, eos=2, start=2)
POSITION_OFFSET = 2
"""Rows of the position table that precede position 0."""


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint of BART."""
    options = Options(values, "BART")
    fields = common_fields(options, DEFAULTS, present)
    refuse_other_norm_order(options, before=False)
    options.finish()
    config = ModelConfig(
        norm_position="post",
        embedding_norm=True,
        position="learned",
        position_offset=POSITION_OFFSET,
        **fields,
    )
    return make_import(config, present)
