"""Finding engines that fit, and telling why others do not."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from drl.runtime.backends.tensorrt.library import Flavour
from drl.runtime.backends.tensorrt.manifest import EngineOptions
from drl.runtime.backends.tensorrt.store import engine_folders, find_engines, profile_of
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError, BundleError
from tests.runtime.backends.tensorrt.engine_folders import engine, write

RTX: dict[Flavour, str] = {"tensorrt-rtx": "1.7.1.116"}
BOTH: dict[Flavour, str] = {"tensorrt": "11.0.0.1", "tensorrt-rtx": "1.7.1.116"}


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.load(shutil.copytree(tiny_bundle, tmp_path / "my bundle"))


def fault(bundle: Bundle, flavour: Flavour | None = None, target: str = "8.9") -> str:
    def read() -> None:
        found = find_engines(bundle, flavour, target, RTX)
        for name in found.manifest.engines:
            found.read(name)

    with pytest.raises(BackendError) as caught:
        read()
    return str(caught.value)


def test_engines_that_fit_are_found(bundle: Bundle) -> None:
    folder = write(bundle)
    found = find_engines(bundle, "tensorrt-rtx", "8.9", RTX)
    assert found.folder == folder
    assert found.file("encoder") == folder / "encoder.engine"
    assert found.engine("decoder.fast").bytes == len("decoder.fast")
    assert found.manifest.capacity == 48


def test_the_first_installed_flavour_with_engines_is_taken(bundle: Bundle) -> None:
    write(bundle)
    assert find_engines(bundle, None, "8.9", BOTH).manifest.flavour == "tensorrt-rtx"
    write(bundle, flavour="tensorrt", library_version="11.0.0.1")
    assert find_engines(bundle, None, "8.9", BOTH).manifest.flavour == "tensorrt"
    assert find_engines(bundle, "tensorrt-rtx", "8.9", BOTH).manifest.flavour == "tensorrt-rtx"


def test_a_bundle_without_engines_says_how_to_build_them(bundle: Bundle) -> None:
    command = f"`drl-build '{bundle.folder}' --flavour rtx`"
    assert fault(bundle) == f"{bundle.folder} has no TensorRT engines; run {command}"
    (bundle.folder / "engines" / ".partial-x").mkdir(parents=True)
    assert "has no TensorRT engines" in fault(bundle)


def test_another_gpu_is_named(bundle: Bundle) -> None:
    write(bundle, compute_capability="8.0")
    write(bundle, compute_capability="12.0")
    message = fault(bundle)
    assert "are for compute capability 8.0, 12.0, and this GPU has 8.9" in message
    assert "run `drl-build" in message


def test_another_version_is_named(bundle: Bundle) -> None:
    write(bundle, library_version="1.6.0.5")
    message = fault(bundle)
    assert "were built with TensorRT for RTX 1.6.0.5, and 1.7.1.116 is installed" in message


def test_another_flavour_is_named(bundle: Bundle) -> None:
    write(bundle, flavour="tensorrt", library_version="11.0.0.1")
    assert "are for TensorRT, and not for TensorRT for RTX" in fault(bundle)


def test_a_flavour_that_is_not_installed_is_named(bundle: Bundle) -> None:
    write(bundle)
    with pytest.raises(BackendError, match=r"^TensorRT is not installed"):
        find_engines(bundle, "tensorrt", "8.9", RTX)
    with pytest.raises(BackendError, match=r"^TensorRT is not installed"):
        find_engines(bundle, None, "8.9", {})


def test_engines_of_another_export_are_told_with_the_whole_command(bundle: Bundle) -> None:
    write(bundle, digest="0" * 64)
    message = fault(bundle)
    assert "were built from another export of this bundle" in message
    assert message.endswith(
        f"run `drl-build '{bundle.folder}' --flavour rtx --compute-capability 8.9 --batch 1,8,32`"
    )


def test_a_renamed_folder_is_not_believed(bundle: Bundle) -> None:
    write(bundle, compute_capability="8.0", folder="rtx-1.7.1.116-sm89")
    assert "holds engines of rtx-1.7.1.116-sm80, so it was renamed" in fault(bundle)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"encodeR", "the engine of encoder in {} is damaged: its SHA-256 differs"),
        (b"enc", "the engine of encoder in {} is damaged: it has 3 bytes instead of 7"),
        (None, "the engine of encoder in {} is missing"),
    ],
)
def test_a_damaged_engine_is_found_before_it_is_read(
    bundle: Bundle, content: bytes | None, expected: str
) -> None:
    folder = write(bundle)
    if content is None:
        (folder / "encoder.engine").unlink()
    else:
        (folder / "encoder.engine").write_bytes(content)
    message = fault(bundle)
    assert expected.format(folder) in message
    assert "run `drl-build" in message


def test_sizes_are_compared_at_once_and_what_is_read_is_what_was_hashed(bundle: Bundle) -> None:
    folder = write(bundle)
    found = find_engines(bundle, None, "8.9", RTX)
    assert found.read("encoder") == b"encoder"
    for content, message in ((b"encodeR", "its SHA-256 differs"), (b"enc", "3 bytes instead of 7")):
        (folder / "encoder.engine").write_bytes(content)
        with pytest.raises(BackendError, match=message):
            found.read("encoder")
    with pytest.raises(BackendError, match="3 bytes instead of 7"):
        find_engines(bundle, None, "8.9", RTX)
    (folder / "encoder.engine").unlink()
    with pytest.raises(BackendError, match="is missing; run `drl-build"):
        found.read("encoder")


def test_a_damaged_folder_for_another_machine_is_passed_over(bundle: Bundle) -> None:
    damaged = write(bundle, compute_capability="8.0")
    (damaged / "engines.json").write_text("{")
    assert f"{damaged}: " in fault(bundle)
    assert "are for compute capability 8.0, and this GPU has 8.9" in fault(bundle)
    moving = EngineOptions(hardware_compatible=True)
    write(bundle, compute_capability="8.6", options=moving)
    assert find_engines(bundle, None, "8.9", RTX).manifest.compute_capability == "8.6"


BF16 = ("--precision", "bf16", "--batch", "1,4,8", "--beams", "2")


def test_every_command_keeps_what_the_engines_were_built_with(bundle: Bundle) -> None:
    whole = "--precision bf16 --batch 1,4,8 --beams 2"
    command = f"drl-build '{bundle.folder}' --flavour rtx"
    write(bundle, compute_capability="8.0", arguments=BF16)
    assert fault(bundle).endswith(f"run `{command} {whole}`")
    write(bundle, library_version="1.7.0.1", arguments=BF16)
    assert fault(bundle).endswith(f"run `{command} {whole}`")
    write(bundle, arguments=BF16)
    found = find_engines(bundle, None, "8.9", RTX)
    assert found.command == f"{command} --compute-capability 8.9 {whole}"
    with pytest.raises(BackendError, match=f"8\\.9 {whole} --path full`"):
        found.engine("decoder.full")
    with pytest.raises(BackendError, match=r"8\.9 --precision bf16 --beams 2 --batch 1,8,64`"):
        found.profile_of("decoder.fast", {"B": 64, "R": 1, "K": 1, "T": 1})
    with pytest.raises(BackendError, match=r"bf16 --batch 1,4,8 --sources 1,8,64`"):
        found.profile_of("encoder", {"B": 64, "S": 8})


def test_tensorrt_is_not_asked_to_build_for_a_gpu_that_is_not_here(bundle: Bundle) -> None:
    options = EngineOptions(hardware_compatible=True)
    write(
        bundle,
        flavour="tensorrt",
        library_version="11.0.0.1",
        compute_capability="8.0",
        options=options,
        arguments=("--hardware-compatible",),
    )
    found = find_engines(bundle, None, "8.9", BOTH)
    assert found.command == (
        f"drl-build '{bundle.folder}' --flavour tensorrt --hardware-compatible"
    )


def test_a_damaged_manifest_is_an_error(bundle: Bundle) -> None:
    folder = write(bundle)
    (folder / "engines.json").write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        find_engines(bundle, None, "8.9", RTX)


def test_an_engine_that_was_not_built_is_named_with_its_path(bundle: Bundle) -> None:
    write(bundle)
    found = find_engines(bundle, None, "8.9", RTX)
    with pytest.raises(BackendError) as caught:
        found.file("decoder.full")
    assert "holds no engine of decoder.full; run `drl-build" in str(caught.value)
    assert "--path full`" in str(caught.value)


@pytest.mark.parametrize(
    ("built_for", "runs_on", "fits"),
    [("8.0", "8.9", True), ("8.6", "12.0", True), ("7.5", "8.9", False), ("8.0", "7.5", False)],
)
def test_hardware_compatible_engines_run_from_ampere_on(
    bundle: Bundle, built_for: str, runs_on: str, fits: bool
) -> None:
    write(bundle, compute_capability=built_for, options=EngineOptions(hardware_compatible=True))
    if fits:
        assert find_engines(bundle, None, runs_on, RTX).manifest.compute_capability == built_for
    else:
        assert f"this GPU has {runs_on}" in fault(bundle, target=runs_on)


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("10.13.0.1", "10.14.0.1", True),
        ("10.14.0.1", "10.13.0.1", False),
        ("10.13.0.1", "11.0.0.1", False),
    ],
)
def test_version_compatible_engines_run_on_later_minor_versions(
    bundle: Bundle, built: str, here: str, fits: bool
) -> None:
    options = EngineOptions(version_compatible=True)
    write(bundle, flavour="tensorrt", library_version=built, options=options)
    versions: dict[Flavour, str] = {"tensorrt": here}
    if fits:
        assert find_engines(bundle, None, "8.9", versions).manifest.library_version == built
    else:
        with pytest.raises(BackendError, match=f"{built}, and {here} is installed"):
            find_engines(bundle, None, "8.9", versions)


def test_the_folder_made_for_this_machine_comes_first(bundle: Bundle) -> None:
    write(bundle, compute_capability="8.0", options=EngineOptions(hardware_compatible=True))
    write(bundle)
    assert find_engines(bundle, None, "8.9", RTX).manifest.compute_capability == "8.9"


def test_folders_are_told_by_their_names(bundle: Bundle) -> None:
    write(bundle)
    for name in ("notes", "rtx-sm89", ".lock", "onnx-1.0-sm89"):
        (bundle.folder / "engines" / name).mkdir()
    (found,) = engine_folders(bundle)
    assert (found.flavour, found.version) == ("tensorrt-rtx", "1.7.1.116")
    assert found.compute_capability == "8.9"


DECODER = engine("decoder.fast", b"x")
ENCODER = engine("encoder", b"x")


@pytest.mark.parametrize(
    ("dims", "name"),
    [
        ({"B": 1, "R": 1, "K": 1, "T": 1}, "step"),
        ({"B": 32, "R": 32, "K": 24, "T": 1}, "step"),
        ({"B": 32, "R": 8, "K": 24, "T": 2}, "prefill"),
        ({"B": 1, "R": 1, "K": 24, "T": 16}, "prefill"),
    ],
)
def test_the_narrowest_profile_that_fits_is_taken(dims: dict[str, int], name: str) -> None:
    assert DECODER.profiles[profile_of(DECODER, dims)].name == name


def test_names_that_a_profile_lacks_do_not_count() -> None:
    assert profile_of(ENCODER, {"B": 8, "S": 48, "T": 99}) == 0


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (
            {"B": 33, "R": 1, "K": 1, "T": 1},
            "batch B = 33 exceeds 32, the most that the engine of decoder.fast takes; "
            "run `drl-build BUNDLE --batch 1,8,33`",
        ),
        (
            {"B": 1, "R": 1, "K": 1, "T": 17},
            "new tokens T = 17 exceeds 16, the most that the engine of decoder.fast takes; "
            "run `drl-build BUNDLE --new-tokens 1,4,17`",
        ),
        (
            {"B": 33, "R": 1, "K": 1, "T": 2},
            "batch B = 33 exceeds 32, the most that the engine of decoder.fast takes; "
            "run `drl-build BUNDLE --batch 1,8,33`",
        ),
        (
            {"B": 1, "R": 1, "K": 25, "T": 1},
            "kept states K = 25 exceeds 24, the most that the engine of decoder.fast takes; "
            "run `drl-build BUNDLE --source MIN,OPT,MAX`",
        ),
        (
            {"B": 1, "R": 0, "K": 1, "T": 1},
            "sources R = 0 is below 1, the least that the engine of decoder.fast takes; "
            "run `drl-build BUNDLE --sources 0,8,32`",
        ),
    ],
)
def test_a_size_beyond_every_profile_names_the_dimension_and_its_limit(
    dims: dict[str, int], message: str
) -> None:
    with pytest.raises(BackendError) as caught:
        profile_of(DECODER, dims)
    assert str(caught.value) == message


def test_a_batch_of_the_encoder_is_a_number_of_sources(bundle: Bundle) -> None:
    write(bundle)
    found = find_engines(bundle, None, "8.9", RTX)
    assert found.profile_of("encoder", {"B": 8, "S": 8}) == 0
    with pytest.raises(BackendError) as caught:
        found.profile_of("encoder", {"B": 64, "S": 8})
    assert "sources B = 64 exceeds 32" in str(caught.value)
    assert str(caught.value).endswith("--batch 1,8,32 --sources 1,8,64`")


def test_a_manifest_is_checked_before_any_engine_is_opened(bundle: Bundle) -> None:
    folder = write(bundle)
    document = json.loads((folder / "engines.json").read_text())
    document["format_version"] = 2
    (folder / "engines.json").write_text(json.dumps(document))
    (folder / "encoder.engine").unlink()
    with pytest.raises(BundleError, match="have format 2"):
        find_engines(bundle, None, "8.9", RTX)


def test_a_changed_bundle_is_noticed_by_its_manifest(bundle: Bundle) -> None:
    write(bundle)
    weights = dataclasses.replace(bundle.manifest.files["weights.bin"], sha256="0" * 64)
    files = {**bundle.manifest.files, "weights.bin": weights}
    other = Bundle(bundle.folder, dataclasses.replace(bundle.manifest, files=files))
    with pytest.raises(BackendError, match="another export"):
        find_engines(other, None, "8.9", RTX)
