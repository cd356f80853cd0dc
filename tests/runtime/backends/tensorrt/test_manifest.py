"""`engines.json`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from drl.runtime.backends.tensorrt.manifest import EngineManifest, EngineOptions, bundle_digest
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BundleError
from tests.runtime.backends.tensorrt.engine_folders import engine, manifest


@pytest.fixture
def whole(tiny_bundle: Path) -> EngineManifest:
    bundle = Bundle.load(tiny_bundle)
    engines = {name: engine(name, b"x") for name in ("encoder", "decoder.fast")}
    options = EngineOptions(hardware_compatible=True)
    return manifest(bundle, engines, options=options, plugins={"ExpertRoute": "1" * 64})


def document(whole: EngineManifest) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(json.dumps(whole.to_document()))
    return decoded


def test_what_is_written_is_read_back(whole: EngineManifest, tmp_path: Path) -> None:
    (tmp_path / "engines.json").write_text(json.dumps(whole.to_document()))
    assert EngineManifest.load(tmp_path) == whole


def test_the_folder_is_named_after_library_version_and_gpu(whole: EngineManifest) -> None:
    assert whole.folder_name == "rtx-1.7.1.116-sm89"
    other = dataclasses.replace(
        whole, flavour="tensorrt", library_version="11.0.0.1", compute_capability="12.0"
    )
    assert other.folder_name == "tensorrt-11.0.0.1-sm120"


def test_unknown_fields_are_left_alone(whole: EngineManifest) -> None:
    decoded = document(whole)
    decoded["news"] = decoded["options"]["news"] = 1
    decoded["engines"]["encoder"]["news"] = 1
    assert EngineManifest.parse(decoded) == whole


@pytest.mark.parametrize(
    ("place", "value", "fragment"),
    [
        (("format",), "drl-bundle", "does not describe engines"),
        (("format_version",), 2, "have format 2 and this drl reads up to 1; upgrade with"),
        (("flavour",), "rtx", "flavour must be tensorrt or tensorrt-rtx, not 'rtx'"),
        (("capacity",), 0, "capacity must be at least 1"),
        (("capacity",), "48", "capacity must be an integer"),
        (("options", "weight_streaming"), 1, "options.weight_streaming must be true or false"),
        (("plugins", "ExpertRoute"), None, "plugins.ExpertRoute must be a string"),
        (("engines", "encoder", "bytes"), -1, "engines.encoder.bytes must be at least 0"),
        (("engines", "encoder", "file"), "../x.engine", "must be a plain file name"),
        (("engines", "encoder", "file"), "..", "must be a plain file name"),
        (("engines", "encoder", "file"), "a\\b.engine", "must be a plain file name"),
        (
            ("engines", "encoder", "profiles", 0, "dims", "B"),
            [1, 2],
            "engines.encoder.profiles[0].dims.B must be three numbers",
        ),
        (
            ("engines", "encoder", "profiles", 0, "shapes", "x", "min"),
            [True],
            "must be an array of whole numbers",
        ),
        (("engines", "encoder", "inputs"), {}, "engines.encoder.inputs must be an array"),
    ],
)
def test_a_wrong_field_is_named(
    whole: EngineManifest, place: tuple[str | int, ...], value: object, fragment: str
) -> None:
    decoded: Any = document(whole)
    inner = decoded
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(BundleError) as caught:
        EngineManifest.parse(decoded)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(EngineManifest)] + ["format_version"]
)
def test_a_missing_field_is_named(whole: EngineManifest, field: str) -> None:
    decoded = document(whole)
    del decoded[field]
    with pytest.raises(BundleError, match=rf"has no {field}; run `drl-build BUNDLE` again"):
        EngineManifest.parse(decoded)


def test_what_is_no_json_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "engines.json").write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        EngineManifest.load(tmp_path)
    with pytest.raises(BundleError, match="cannot be read"):
        EngineManifest.load(tmp_path / "missing")
    with pytest.raises(BundleError, match="must be an object"):
        EngineManifest.parse([])


def test_the_digest_follows_graphs_and_weights_alone(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle).manifest
    found = bundle_digest(bundle)
    assert bundle_digest(bundle) == found

    def altered(name: str) -> str:
        info = dataclasses.replace(bundle.files[name], sha256="f" * 64)
        return bundle_digest(dataclasses.replace(bundle, files={**bundle.files, name: info}))

    for name in (*bundle.canonical.values(), "weights.bin"):
        assert altered(name) != found
    assert altered("decoder.onnx") == found
    assert altered("parity.json") == found
