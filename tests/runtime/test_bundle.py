"""Loading bundles: what is whole loads, and everything else is refused with a way to mend it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from drl.runtime import Bundle, BundleError
from tests.runtime.toy import manifest_document

CONTENT = {"encoder.onnx": b"encoder", "bridge.onnx": b"bridge", "decoder.onnx": b"decoder"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle as far as loading is concerned: its graphs are not looked into."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    document = manifest_document()
    document["files"] = {}
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        document["files"][name] = {"bytes": len(content), "sha256": digest}
        document["graphs"][name.split(".")[0]] = {**document["graphs"]["encoder"], "file": name}
    write(folder, document)
    return folder


def write(folder: Path, document: object) -> None:
    (folder / "bundle.json").write_text(json.dumps(document))


def document_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    return document


def test_a_whole_bundle_loads(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.manifest.limits.max_source_length == 40
    assert [path.name for path in bundle.manifest.paths] == ["fast", "mid", "full"]
    assert bundle.manifest.paths[1].layers == (0, 2)
    assert bundle.manifest.path_router is not None
    assert bundle.graph_file("encoder").read_bytes() == b"encoder"
    assert bundle.size == sum(map(len, CONTENT.values()))
    assert bundle.tokenizer_file is None
    assert Bundle.load(str(folder)) == bundle


def test_an_exported_bundle_loads(tiny_bundle: Path) -> None:
    manifest = Bundle.load(tiny_bundle).manifest
    assert manifest.target == "ort-cpu"
    assert "logits" in [tensor.name for tensor in manifest.graphs["decoder"].outputs]


def test_a_bundle_from_before_canonical_graphs_loads_and_says_so_when_asked(folder: Path) -> None:
    assert "canonical" not in document_of(folder)
    bundle = Bundle.load(folder)
    assert bundle.manifest.canonical == {}
    with pytest.raises(BundleError, match=r"holds no canonical graphs.*again in fp32: `drl-export"):
        bundle.canonical_file("encoder")


def test_canonical_graphs_are_found_by_the_manifest(folder: Path) -> None:
    document = document_of(folder)
    document["canonical"] = {name.split(".")[0]: name for name in CONTENT}
    write(folder, document)
    assert Bundle.load(folder).canonical_file("decoder") == folder / "decoder.onnx"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "canonical must be an object"),
        ({"encoder": "encoder.onnx"}, "has no canonical.bridge"),
        (dict.fromkeys(("encoder", "bridge", "decoder"), 3), "canonical.encoder must be a string"),
        (
            dict.fromkeys(("encoder", "bridge", "decoder"), "other.onnx"),
            "canonical.encoder is in 'other.onnx', which `files` does not list",
        ),
    ],
)
def test_canonical_graphs_that_are_not_there_are_refused(
    folder: Path, value: object, message: str
) -> None:
    write(folder, document_of(folder) | {"canonical": value})
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*drl-export CHECKPOINT"):
        Bundle.load(tmp_path / "missing")
    with pytest.raises(BundleError, match="is empty, so it is no bundle"):
        Bundle.load(tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(BundleError, match="is a file, and a bundle is a folder"):
        Bundle.load(file)
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "nothing", '{"format": ', "[" * 100_000, "\udcff".encode("utf-8", "replace")]
)
def test_a_manifest_that_is_no_json_is_refused(folder: Path, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"is not JSON.*run `drl-export` again"):
        Bundle.load(folder)


def test_a_manifest_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "bundle.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle.load(folder)


def test_a_newer_format_is_refused_before_anything_else_is_read(folder: Path) -> None:
    write(folder, {"format": "drl-bundle", "format_version": 2})
    with pytest.raises(BundleError, match="format 2 and this drl reads up to 1; upgrade with"):
        Bundle.load(folder)


def test_another_format_is_refused(folder: Path) -> None:
    write(folder, {"format": "other"})
    with pytest.raises(BundleError, match="not a DRL bundle"):
        Bundle.load(folder)
    write(folder, [1])
    with pytest.raises(BundleError, match="must be an object"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("target", None, "bundle.json has no target"),
        ("target", 3, "target must be a string, not 3"),
        ("limits.vocab_size", 0, "limits.vocab_size must be at least 1"),
        ("limits.vocab_size", "9", "limits.vocab_size must be an integer, not '9'"),
        ("cache.kv_heads", True, "cache.kv_heads must be an integer, not True"),
        ("cache.dtype", None, "no cache.dtype"),
        ("cache.scale_bytes", -1, "cache.scale_bytes must be at least 0, not -1"),
        ("paths", [], "names no path"),
        ("paths", {}, "paths must be an array"),
        ("paths.0.layers", [], r"paths\[0\].layers must be an array of decoder layer numbers"),
        ("paths.0.layers", [9], "path 'fast' names a decoder layer outside 0..2"),
        ("paths.0.cost", 1.0, "paths must come cheapest first"),
        ("paths.2.cost", 1.5, r"paths\[2\].cost must be a number from 0 to 1, not 1.5"),
        ("paths.2.cost", 10**400, r"paths\[2\].cost must be a number from 0 to 1, not 1000"),
        ("paths.0.cost", float("nan"), r"paths\[0\].cost must be a number from 0 to 1, not nan"),
        ("paths.0.keep_ratio", 1.5, r"paths\[0\].keep_ratio must be a number from 0 to 1"),
        ("paths.0.keep_ratio", 0, r"paths\[0\].keep_ratio must be above 0"),
        ("path_router.threshold", 2, "path_router.threshold must be a number from 0 to 1"),
        ("tokens.pad", 10**6, "tokens.pad must be below limits.vocab_size"),
        ("tokens.eos", 10**6, "tokens.eos must be below limits.vocab_size"),
        ("tokens.start", 10**6, "tokens.start must be below limits.vocab_size"),
        ("cache.dtype", "floaty", "cache.dtype must be float32, float16 or int8, not 'floaty'"),
        (
            "precision",
            "int3",
            r"precision must be fp32, int8, int8-block, int4 or int4\+int8-head, not",
        ),
        ("paths.0.cost", "x", r"paths\[0\].cost must be a number"),
        ("paths.0.name", "mid", "two paths of one name"),
        ("path_router.head", "best", "linear, attention or greedy, not 'best'"),
        ("graphs.bridge", None, "no graphs.bridge"),
        ("graphs.bridge.inputs", 1, "graphs.bridge.inputs must be an array"),
        ("graphs.bridge.file", "x.onnx", "graphs.bridge is in 'x.onnx', which `files` does not"),
        ("files.bridge.onnx", [], "files.bridge.onnx must be an object"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, place: str, value: object, message: str) -> None:
    document = document_of(folder)
    at: Any = document
    *parents, last = place.split(".") if place != "files.bridge.onnx" else ["files", "bridge.onnx"]
    for name in parents:
        at = at[int(name) if name.isdigit() else name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    write(folder, document)
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


def test_unknown_fields_are_ignored(folder: Path) -> None:
    write(folder, {**document_of(folder), "later": {"addition": 1}})
    Bundle.load(folder)


def test_a_missing_a_truncated_and_an_altered_file_are_all_named(folder: Path) -> None:
    (folder / "encoder.onnx").unlink()
    (folder / "bridge.onnx").write_bytes(b"brid")
    (folder / "decoder.onnx").write_bytes(b"DECODER")
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    message = str(caught.value)
    assert "encoder.onnx is missing" in message
    assert "bridge.onnx has 4 bytes instead of 6" in message
    assert "decoder.onnx was altered" in message
    assert "run `drl-export` again" in message


def test_hashing_can_be_turned_off_but_sizes_cannot(folder: Path) -> None:
    (folder / "decoder.onnx").write_bytes(b"DECODER")
    Bundle.load(folder, verify_hashes=False)
    (folder / "decoder.onnx").write_bytes(b"DECODER!")
    with pytest.raises(BundleError, match="8 bytes instead of 7"):
        Bundle.load(folder, verify_hashes=False)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside", "a/../../outside", "C:\\outside", "a\\b", "", ".", "..", "a\0b"],
)
def test_names_that_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    document = document_of(folder)
    document["files"][name] = {"bytes": 0, "sha256": ""}
    write(folder, document)
    with pytest.raises(BundleError, match="no plain file name"):
        Bundle.load(folder, verify_hashes=False)


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(CONTENT["decoder.onnx"])
    (folder / "decoder.onnx").unlink()
    (folder / "decoder.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"decoder\.onnx is a link out of"):
        Bundle.load(folder)
    (folder / "decoder.onnx").unlink()
    (folder / "kept.onnx").write_bytes(CONTENT["decoder.onnx"])
    (folder / "decoder.onnx").symlink_to("kept.onnx")
    Bundle.load(folder)


def test_a_link_to_the_folder_itself_is_fine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    Bundle.load(tmp_path / "link")


def test_a_file_of_the_bundle_may_lie_in_a_subfolder(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "x").write_bytes(b"x")
    document = document_of(folder)
    document["files"]["more/x"] = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    write(folder, document)
    assert Bundle.load(folder).file("more/x").read_bytes() == b"x"


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "decoder.onnx").unlink()
    (folder / "decoder.onnx").mkdir()
    with pytest.raises(BundleError, match=r"decoder\.onnx is missing"):
        Bundle.load(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(folder: Path) -> None:
    (folder / "decoder.onnx").chmod(0)
    with pytest.raises(BundleError, match=r"decoder\.onnx cannot be read"):
        Bundle.load(folder)


def test_only_listed_files_can_be_asked_for(folder: Path) -> None:
    with pytest.raises(BundleError, match="lists no secret"):
        Bundle.load(folder).file("secret")
