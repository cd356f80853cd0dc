import errno
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from drl.export import ExportOptions, export, save_checkpoint
from drl.export import exporter as exporter_module
from drl.export.bundle_writer import write_json
from drl.export.model import DualRouterModel
from drl.export.parity import ParityReport, PathParity, RouteParity
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BundleError, CheckpointError, ExportError
from tests.models import TINY

FILES = [
    "bridge.onnx",
    "bundle.json",
    "decoder.canonical.onnx",
    "decoder.onnx",
    "encoder.onnx",
    "parity.json",
    "weights.bin",
]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_is_complete_and_loads(tiny_bundle: Path) -> None:
    assert _names(tiny_bundle) == FILES
    manifest = Bundle.load(tiny_bundle).manifest
    assert [path.name for path in manifest.paths] == ["fast", "balanced", "full"]
    assert manifest.parity is not None
    assert manifest.parity["passed"] is True
    assert json.loads((tiny_bundle / "parity.json").read_text())["routes_wrong"] == 0


def test_exporting_twice_gives_the_same_bytes(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    export(tiny_checkpoint, tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tiny_bundle / name).read_bytes(), name


def test_the_canonical_graphs_are_those_of_a_portable_bundle(
    tiny_bundle: Path, portable_bundle: Path
) -> None:
    ours, portable = Bundle.load(tiny_bundle), Bundle.load(portable_bundle)
    assert ours.manifest.canonical["decoder"] == "decoder.canonical.onnx"
    for graph in ("encoder", "bridge", "decoder"):
        assert portable.canonical_file(graph) == portable.graph_file(graph)
        assert ours.canonical_file(graph).read_bytes() == portable.graph_file(graph).read_bytes()
    # What our decoder reads in another order lies behind what all read.
    shared = portable.file("weights.bin").read_bytes()
    assert ours.file("weights.bin").read_bytes().startswith(shared)


def test_a_quantised_bundle_holds_no_canonical_graphs(quantized_bundle: Path) -> None:
    bundle = Bundle.load(quantized_bundle)
    assert bundle.manifest.canonical == {}
    assert not (quantized_bundle / "decoder.canonical.onnx").exists()
    with pytest.raises(BundleError, match=r"holds no canonical graphs.*again in fp32"):
        bundle.canonical_file("decoder")


@pytest.mark.parametrize("bundle", ["tiny_bundle", "portable_bundle"])
def test_no_tensor_is_stored_twice(bundle: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(bundle)
    places: dict[tuple[int, int], str] = {}
    inline = 0
    for file in sorted(folder.glob("*.onnx")):
        model = onnx.load(file, load_external_data=False)
        for tensor in model.graph.initializer:
            external = {entry.key: entry.value for entry in tensor.external_data}
            if not external:
                inline += len(tensor.SerializeToString())
                continue
            assert external["location"] == "weights.bin"
            place = int(external["offset"]), int(external["length"])
            assert places.setdefault(place, tensor.name) == tensor.name
    assert inline < 4096  # shapes and other constants only
    spans = sorted(places)
    assert all(a + b <= c for (a, b), (c, _) in itertools.pairwise(spans))
    weights = np.memmap(folder / "weights.bin", np.uint8, "r")
    # Panels are another order of what the canonical decoder reads, and of 64 columns the same.
    whole = [(a, n) for a, n in spans if n >= 1024 and not places[a, n].endswith(".panels")]
    contents = [bytes(weights[a : a + n]) for a, n in whole]
    assert len(set(contents)) == len(contents)
    stored = sum(length for _, length in spans)
    assert weights.size < stored + 64 * len(spans)


def test_a_bundle_is_not_replaced_unless_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    options = ExportOptions(verify=False)
    export(tiny_checkpoint, bundle, options)
    (bundle / "engines").mkdir()
    (bundle / "engines" / "built").write_text("can be built again")
    with pytest.raises(ExportError, match="give --force"):
        export(tiny_checkpoint, bundle, options)
    assert (bundle / "engines").exists()
    export(tiny_checkpoint, bundle, ExportOptions(verify=False, force=True))
    assert _names(bundle) == [name for name in FILES if name != "parity.json"]
    assert _names(tmp_path) == ["bundle"]


def test_force_does_not_delete_what_is_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="is no bundle"):
        export(tiny_checkpoint, tmp_path / "home", ExportOptions(force=True))
    assert (tmp_path / "home" / "thesis.txt").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_force_does_not_delete_what_a_bundle_does_not_list(
    damaged: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    export(tiny_checkpoint, bundle, ExportOptions(verify=False))
    (bundle / "mine.txt").write_text("kept")
    if damaged:
        (bundle / "bundle.json").write_text("[")
        (bundle / "a.txt").write_text("kept too")
    name = "a.txt" if damaged else "mine.txt"
    with pytest.raises(ExportError, match=f"holds {name}, which its bundle.json does not list"):
        export(tiny_checkpoint, bundle, ExportOptions(verify=False, force=True))
    assert (bundle / "mine.txt").read_text() == "kept"


def test_a_checkpoint_that_cannot_be_read_is_not_called_a_full_disk(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (folder / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read: Is a directory"):
        export(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_of_which_nothing_was_compared_is_refused_as_that(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = PathParity("fast", 0.0, 0.0, 0.0, 0, RouteParity(near_ties=9, flips=4))
    report = ParityReport(0.0, 0.0, RouteParity(), (nothing,))
    monkeypatch.setattr(exporter_module, "compare", lambda *_: report)
    with pytest.raises(ExportError, match="nothing is left to compare on path fast"):
        export(tiny_checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_has_not_is_never_written(number: float, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"parity\.json cannot be written"):
        write_json(tmp_path / "parity.json", {"a": [number]})
    assert _names(tmp_path) == []


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["_write", "_verify", "write_manifest"])
@pytest.mark.parametrize(
    ("fault", "raised"), [(_full_disk, ExportError), (_interrupt, KeyboardInterrupt)]
)
def test_a_failed_export_leaves_the_old_bundle_and_nothing_else(
    stage: str,
    fault: object,
    raised: type[BaseException],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = tmp_path / "bundle"
    export(tiny_checkpoint, bundle, ExportOptions(verify=False))
    before = (bundle / "bundle.json").read_bytes()
    monkeypatch.setattr(exporter_module, stage, fault)
    with pytest.raises(raised):
        export(tiny_checkpoint, bundle, ExportOptions(force=True))
    assert _names(tmp_path) == ["bundle"]
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_bad_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        export(tmp_path / "missing", tmp_path / "bundle")
    assert _names(tmp_path) == []


def test_a_bundle_that_differs_from_the_model_is_refused(
    tiny_model: DualRouterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "checkpoint", tiny_model)
    original = exporter_module.Checkpoint.model

    def altered(self: exporter_module.Checkpoint) -> DualRouterModel:
        model = original(self)
        model.decoder.layers[3].ffn_norm.weight.data *= 1.01
        return model

    monkeypatch.setattr(exporter_module.Checkpoint, "model", altered)
    with pytest.raises(ExportError, match="does not reproduce the model: logits differ by"):
        export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_route_that_differs_clearly_fails_the_report() -> None:
    clean = PathParity("full", 1e-6, 1e-6, 1e-6, 10, RouteParity(compared=5, near_ties=2, flips=1))
    wrong = PathParity("full", 1e-6, 1e-6, 1e-6, 10, RouteParity(compared=5, wrong=1))
    nothing = PathParity("full", 0.0, 0.0, 0.0, 0, RouteParity())
    assert ParityReport(0.0, 0.0, RouteParity(), (clean,)).passed
    assert not ParityReport(0.0, 0.0, RouteParity(), (clean, wrong)).passed
    assert not ParityReport(0.0, 0.0, RouteParity(), (nothing,)).passed


def executed_nodes(bundle: Path, path: int, folder: Path) -> list[str]:
    """Run one decoder step under the profiler; return the names of the nodes that ran."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / f"path{path}")
    session = onnxruntime.InferenceSession(bundle / "decoder.onnx", options)
    layers = TINY.paths[path].layers
    feeds: dict[str, np.ndarray] = {
        "tokens": np.full((1, 1), 2, np.int64),
        "lengths": np.zeros(1, np.int32),
        "new_lengths": np.ones(1, np.int32),
        "candidates": np.zeros(1, np.int64),
        "path": np.array(path, np.int64),
        "cross_bias": np.zeros((1, 5), np.float32),
    }
    for i in range(TINY.decoder_layers):
        for kind, length in (("cross", 5), ("past", 8)):
            size = length if i in layers else 0
            for side in "kv":
                feeds[f"{kind}_{side}.{i}"] = np.zeros((1, 2, size, 16), np.float32)
    session.run(None, {each.name: feeds[each.name] for each in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    names = [event["name"] for event in events if event.get("cat") == "Node"]
    end = "_kernel_time"
    return [name.removesuffix(end) for name in names if name.endswith(end)]


def _executed_layers(bundle: Path, path: int, folder: Path) -> Counter[str]:
    """Return how many nodes of each decoder layer run in one step."""
    return Counter(
        f"layers.{i}"
        for name in executed_nodes(bundle, path, folder)
        for i in range(TINY.decoder_layers)
        if f"layers.{i}/" in name
    )


def test_a_skipped_layer_does_no_work(portable_bundle: Path, tmp_path: Path) -> None:
    fast = _executed_layers(portable_bundle, 0, tmp_path)
    full = _executed_layers(portable_bundle, 2, tmp_path)
    assert fast["layers.1"] <= 4  # hands on the states and the empty caches
    assert fast["layers.2"] <= 4
    assert full["layers.1"] > 15
    assert full["layers.2"] > 15
    for layer in ("layers.0", "layers.3"):
        assert fast[layer] > 15
