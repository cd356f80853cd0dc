"""docs/verify.md says what the command does, field by field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drl.export.verification.cli import main
from drl.export.verification.limits import LIMITS
from drl.export.verification.options import BACKENDS, VerifyOptions
from drl.export.verification.verifier import verify
from drl.runtime.bundle import Bundle
from tests.documents import ROOT, Table, code, tables

PAGE = ROOT / "docs" / "verify.md"
# What is described once, under another name.
SAME = ("forced", "first", "inside", "routes", "quantization", "left_out")


def table(heading: str) -> Table:
    (found,) = [table for table in tables(PAGE) if table.heading == heading]
    return found


def leaves(value: Any, path: str) -> Iterator[str]:
    name = path.rpartition(".")[2].removesuffix("[]")
    if name in SAME:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path


def test_every_field_of_the_report_is_documented_and_no_other(tiny_bundle: Path) -> None:
    options = VerifyOptions(("portable",), steps=0, layers=True)
    document = verify(Bundle.load(tiny_bundle), options).to_dict()
    documented = {code(row[0]).removesuffix("[]") for row in table("JSON").rows}
    documented.remove("backends[].layers")  # null without --layers
    assert set(leaves(document, "")) == documented


def test_every_option_is_documented() -> None:
    documented = {word for row in table("Verifying backends").rows for word in row[0].split("`")}
    for option in main.params:
        for name in option.opts:
            assert not name.startswith("--") or any(name in text for text in documented), name


def test_every_backend_is_documented() -> None:
    assert tuple(code(row[0]) for row in table("Backends").rows) == BACKENDS


@pytest.mark.parametrize("precision", LIMITS)
def test_limits_are_those_of_the_code(precision: str) -> None:
    rows = {code(row[0]): tuple(map(float, row[1:])) for row in table("Limits").rows}
    limits = LIMITS[precision]
    assert rows[precision] == (limits.logits, limits.margin, limits.states, limits.same)
    assert len(rows) == len(LIMITS)
