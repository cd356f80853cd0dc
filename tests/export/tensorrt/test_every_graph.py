"""NVIDIA's compiler takes every lowered graph, for several GPUs, on a machine that has none."""

import os
from pathlib import Path

import pytest

from drl.export import ExportOptions, export
from drl.export.tensorrt.builder import build_engines
from drl.export.tensorrt.options import BuildOptions
from drl.runtime.backends.tensorrt.library import import_library, version
from drl.runtime.backends.tensorrt.store import find_engines
from drl.runtime.bundle import Bundle
from tests.export.importers.reference import draw
from tests.generation.families import FAMILIES

TARGETS = ("8.0", "8.9", "12.0")
NUMBERS = Path(__file__).parents[3] / "examples" / "numbers"


def checkpoint(name: str, folder: Path) -> Path:
    """The shipped checkpoint, or a random one of a family that transformers has."""
    if name == "shipped":
        return NUMBERS
    import transformers

    family = FAMILIES[name]
    architecture = getattr(transformers, family.architecture)
    model = architecture(architecture.config_class(**family.config)).eval()
    draw(model, family.drawing, family.seed)
    model.save_pretrained(folder / name)
    return folder / name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shipped", "t5", "switch"])
def test_every_graph_of_every_path_builds(name: str, tmp_path: Path) -> None:
    export(checkpoint(name, tmp_path), tmp_path / "bundle", ExportOptions(verify=False))
    bundle = Bundle.load(tmp_path / "bundle")
    paths = [path.name for path in bundle.manifest.paths]
    expected = ["encoder", *(f"{graph}.{p}" for p in paths for graph in ("bridge", "decoder"))]
    options = BuildOptions("tensorrt-rtx", TARGETS, gate=False, jobs=min(2, os.cpu_count() or 1))
    report = build_engines(bundle, options)
    assert [folder.compute_capability for folder in report.folders] == list(TARGETS)
    for folder in report.folders:
        assert [engine.name for engine in folder.engines] == expected
        assert all(engine.bytes > 1000 for engine in folder.engines)
    versions = {options.flavour: version(import_library(options.flavour))}
    for target in TARGETS:
        found = find_engines(bundle, options.flavour, target, versions)
        assert [profile.name for profile in found.engine(expected[-1]).profiles] == [
            "prefill",
            "step",
        ]
    assert all(
        not engine.reason for f in build_engines(bundle, options).folders for engine in f.engines
    )
