"""mBART (`mbart`): BART with norms before the sublayers and at the end of each stack."""

from collections.abc import Collection, Mapping
from typing import Any

from drl.export.importers.bart import POSITION_OFFSET
from drl.export.importers.bart_layout import (
    Defaults,
    common_fields,
    make_import,
    refuse_other_norm_order,
)
from drl.export.importers.mapping import Import
from drl.export.importers.options import Options
from drl.export.model import ModelConfig

DEFAULTS = Defaults(pad=1, eos=2, start=None)


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint of mBART."""
    options = Options(values, "mBART")
    fields = common_fields(options, DEFAULTS, present)
    refuse_other_norm_order(options, before=True)
    options.finish()
    config = ModelConfig(
        embedding_norm=True, position="learned", position_offset=POSITION_OFFSET, **fields
    )
    return make_import(config, present)
