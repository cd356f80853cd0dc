"""docs/tensorrt.md says what the code does."""

import json
import re
from pathlib import Path
from typing import Any

import click

from drl.export.tensorrt.cli import main
from drl.runtime.backends.tensorrt.library import import_library, release, targets
from drl.runtime.bundle import Bundle
from tests.documents import ROOT, tables
from tests.runtime.backends.tensorrt.engine_folders import engine, manifest

PAGE = ROOT / "docs" / "tensorrt.md"
SOURCES = [
    *(ROOT / "export" / "tensorrt").glob("*.py"),
    *(ROOT / "runtime" / "backends" / "tensorrt").glob("*.py"),
    ROOT / "runtime" / "gpu.py",
    ROOT / "runtime" / "bundle.py",
]


def column(heading: str, number: int = 0) -> list[str]:
    (table,) = [table for table in tables(PAGE) if table.heading == heading]
    return [row[number] for row in table.rows]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_option_is_described() -> None:
    described = {name for cell in column("Build") for name in code(cell)}
    options = [param for param in main.params if isinstance(param, click.Option)]
    assert described == {name for o in options for name in (*o.opts, *o.secondary_opts)}


def pattern(name: str) -> str:
    name = re.sub(r"^engines\.(encoder|decoder\.fast)\.", "engines.<graph>.", name)
    name = re.sub(r"^plugins\..*", "plugins.<name>", name)
    name = re.sub(r"\.shapes\.x\.", ".shapes.<input>.", name)
    return re.sub(r"\.dims\.[A-Z]$", ".dims.<dimension>", name)


def fields(value: Any, place: str = "") -> set[str]:
    if isinstance(value, dict) and value:
        return set().union(*(fields(v, f"{place}.{k}" if place else k) for k, v in value.items()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(fields(item, f"{place}[]") for item in value))
    return {pattern(place)}


def test_every_field_of_the_manifest_is_described(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    engines = {name: engine(name, b"x") for name in ("encoder", "decoder.fast")}
    whole = manifest(bundle, engines, plugins={"ExpertRoute": "0" * 64})
    document = json.loads(json.dumps(whole.to_document()))
    described = {code(cell)[0] for cell in column("engines/<flavour>-<version>-sm<NN>/")}
    assert described == fields(document)


def test_every_message_is_one_that_the_code_has() -> None:
    """Part by part, as some are put together from several places."""
    texts = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in SOURCES))
    for cell in column("Troubleshooting"):
        for message in code(cell):
            parts = [part.strip(" )") for part in re.split(r"…|, ", message)]
            assert len(max(parts, key=len)) > 6, message
            for part in parts:
                assert part in texts, message


def test_the_gpus_that_rtx_builds_for_are_named() -> None:
    (table,) = [table for table in tables(PAGE) if table.heading == "TensorRT"]
    (row,) = [row for row in table.rows if row[0] == "GPUs"]
    named = re.findall(r"\d+\.\d", row[2].partition(";")[0])
    assert sorted(named, key=release) == list(targets(import_library("tensorrt-rtx")))
