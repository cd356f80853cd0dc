"""Quantised bundles on ONNX Runtime: ranked steps, and what happens without the native library."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from drl.export import ExportOptions, export
from drl.plugins.native import NativeLibrary, NativeLibraryError
from drl.runtime import BackendError, Bundle, BundleError, Engine
from drl.runtime.backends import native
from drl.runtime.backends.ort import OrtBackend
from drl.runtime.commands.generate import main
from tests.plugins.native.sets import needs_library

MISSING = NativeLibrary(None, "the native kernels were not built; install DRL again")


@pytest.fixture(scope="module")
def quantised(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with every feature in int8. Treat it as read-only."""
    folder = tmp_path_factory.mktemp("quantised") / "bundle"
    export(tiny_checkpoint, folder, ExportOptions(precision="int8"))
    return folder


def test_without_the_library_a_warning_says_how_to_get_it(
    quantised: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "find_library", lambda: MISSING)
    with pytest.warns(RuntimeWarning, match="the int8 bundle will run many times slower .* again$"):
        engine = Engine.from_bundle(quantised, threads=1)
    (found,) = engine.generate([[5, 6, 7]], max_new_tokens=4)
    assert found.logprobs
    engine.close()
    Engine.from_bundle(tiny_bundle, threads=1).close()  # nothing is slower


def test_a_command_warns_in_one_line(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find_library", lambda: MISSING)
    done = CliRunner().invoke(main, [str(quantised), "text"])
    warning, error = done.stderr.splitlines()
    assert warning.startswith("warning: the int8 bundle will run many times slower")
    assert "no tokenizer" in error


def test_a_library_that_cannot_be_used_is_a_backend_error(
    quantised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> NativeLibrary:
        raise NativeLibraryError("lib.so was built by another version of DRL; install DRL again")

    monkeypatch.setattr(native, "find_library", refuse)
    with pytest.raises(BackendError, match=r"^lib\.so was built by another version of DRL"):
        Engine.from_bundle(quantised)


@needs_library
def test_weights_of_a_newer_layout_are_one_line(quantised: Path, tmp_path: Path) -> None:
    copy = changed(quantised, tmp_path, "decoder", set_layout)
    with pytest.raises(BackendError) as caught:
        OrtBackend(copy, threads=1)
    assert str(caught.value) == (
        "decoder.onnx has packed weights of layout 9; this library reads layout 2: "
        "install a newer drl"
    )


@needs_library
def test_a_decoder_without_its_rankings_is_refused(quantised: Path, tmp_path: Path) -> None:
    def cut(model: onnx.ModelProto) -> None:
        kept = [item for item in model.graph.output if item.name != "top_ids"]
        del model.graph.output[:]
        model.graph.output.extend(kept)

    copy = changed(quantised, tmp_path, "decoder", cut)
    decoder = copy.manifest.graphs["decoder"]
    outputs = tuple(item for item in decoder.outputs if item.name != "top_ids")
    graphs = {**copy.manifest.graphs, "decoder": dataclasses.replace(decoder, outputs=outputs)}
    manifest = dataclasses.replace(copy.manifest, graphs=graphs)
    with pytest.raises(BundleError, match="without top_ids; run `drl-export` again"):
        OrtBackend(dataclasses.replace(copy, manifest=manifest), threads=1)


@needs_library
def test_the_vocabulary_must_be_the_decoder_s(quantised: Path) -> None:
    bundle = Bundle.load(quantised)
    right = bundle.manifest.limits.vocab_size
    for wrong in (right - 1, right + 1):
        limits = dataclasses.replace(bundle.manifest.limits, vocab_size=wrong)
        manifest = dataclasses.replace(bundle.manifest, limits=limits)
        message = rf"limits\.vocab_size is {wrong} and the decoder has {right} logits; run"
        with pytest.raises(BundleError, match=message):
            OrtBackend(dataclasses.replace(bundle, manifest=manifest), threads=1)


@needs_library
@pytest.mark.parametrize("fixture", ["tiny_bundle", "quantised"])
def test_unknown_instructions_are_one_line(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRL_NATIVE_ISA", "avx9")
    with pytest.raises(BackendError) as caught:
        Engine.from_bundle(request.getfixturevalue(fixture))
    assert str(caught.value) == "DRL_NATIVE_ISA must be avx512vnni, avx2 or scalar"


def test_operators_and_not_the_precision_tell_that_kernels_are_needed(
    quantised: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "find_library", lambda: MISSING)
    fp32 = dataclasses.replace(Bundle.load(tiny_bundle).manifest, precision="int8")
    int8 = dataclasses.replace(Bundle.load(quantised).manifest, precision="fp32")
    assert not fp32.quantised
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.native_operators(fp32) is None
    with pytest.warns(RuntimeWarning, match="many times slower"):
        assert native.native_operators(int8) is None


@pytest.mark.parametrize("fixture", ["tiny_bundle", "quantised"])
def test_a_graph_that_fails_is_a_backend_error(
    fixture: str, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = OrtBackend(Bundle.load(request.getfixturevalue(fixture)), threads=1)
    tokens = np.full((1, 2), 10_000, np.int64)  # no such token
    with pytest.raises(BackendError, match=r"^ONNX Runtime cannot run the encoder: ") as caught:
        backend.encode(tokens, np.full(1, 2, np.int32), np.ones(1, np.float32))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # the exception says it all


def set_layout(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "layout":
                attribute.i = 9


def changed(folder: Path, copy: Path, graph: str, change: Any) -> Bundle:
    """A copy of a bundle with one graph changed, whatever its manifest says of hashes."""
    document = json.loads((folder / "bundle.json").read_text())
    for name in document["files"]:
        (copy / name).write_bytes((folder / name).read_bytes())
    path = copy / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    document["files"][path.name]["bytes"] = path.stat().st_size
    (copy / "bundle.json").write_text(json.dumps(document))
    return Bundle.load(copy, verify_hashes=False)
