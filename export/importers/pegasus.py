"""Pegasus (`pegasus`): norms before the sublayers and at the end of each stack, sinusoids."""

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

DEFAULTS = Defaults(pad=0, eos=1, start=0)


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint of Pegasus."""
    options = Options(values, "Pegasus")
    fields = common_fields(options, DEFAULTS, present) | static_positions(present)
    refuse_other_norm_order(options, before=True)
    options.finish()
    return make_import(ModelConfig(**fields), present)
