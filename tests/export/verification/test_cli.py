"""`drl-verify` as a person meets it: what it prints, its exit status, how it fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from drl.export import ExportOptions, export
from drl.export.verification.options import BACKENDS
from tests.export.verification.damage import damaged, epsilon

COMMAND = [sys.executable, "-c", "from drl.export.verification.cli import main; main()"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
QUICK = ("--steps", "2")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def test_all_that_is_available_is_compared_and_the_rest_is_named(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = run(tiny_bundle, *QUICK, "--force-routes", "--layers", "--json", report)
    assert (done.returncode, "error" in done.stderr) == (0, False)
    for stage in ("running eager PyTorch", "running ort-cpu", "running tensorrt-form"):
        assert re.search(rf"^{stage} +\d+\.\d s$", done.stderr, re.MULTILINE)
    assert re.match(
        r"reference: eager PyTorch with the weights in .*; 4 sources of 1 to 24", done.stdout
    )
    for name, precision in (("ort-cpu", "fp32"), ("portable", "fp32"), ("tensorrt-form", "fp16")):
        assert re.search(rf"^{name}  \(ONNX Runtime .*; {precision}\)$", done.stdout, re.MULTILINE)
    assert done.stdout.count("  passed\n") == 3
    assert len(re.findall(r"^  balanced +\d.\de-0\d", done.stdout, re.MULTILINE)) == 6
    assert re.search(
        r"^  decoder\.layers\.3 +fast +\d\.\de-0\d +\d\.\de-0\d +0/24$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^  ort-cuda: .+", done.stdout.split("not available here:")[1], re.MULTILINE)
    document = json.loads(report.read_text())
    assert document["passed"] is True
    assert set(document["left_out"]) == {"ort-cuda", "tensorrt", "tensorrt-rtx"}
    first = document["backends"][0]
    assert first["backend"] == "ort-cpu"
    assert first["free"]["paths"][0]["positions"] == 24
    assert first["forced"]["paths"][2]["path"] == "full"
    assert first["layers"]["first"] is None
    assert len(first["layers"]["places"]) == 33


def test_a_failure_names_the_part_and_gives_status_1(tiny_bundle: Path, tmp_path: Path) -> None:
    change = epsilon("encoder/layers.1/self_attention_norm")
    damaged(tiny_bundle, tmp_path / "bundle", "encoder.onnx", change)
    options = (tmp_path / "bundle", "--backends", "ort-cpu", *QUICK)
    done = run(*options)
    assert done.returncode == 1
    assert re.search(r"^  FAILED: logits of path fast differ by", done.stdout, re.MULTILINE)
    assert "--layers tells where it begins" in done.stdout
    done = run(*options, "--layers", "--json", tmp_path / "report.json")
    assert done.returncode == 1
    assert re.search(
        r"^    encoder\.layers\.1\.self_attention .*<- differs$", done.stdout, re.MULTILINE
    )
    assert "FAILED: encoder.layers.1.self_attention is the first part that differs" in done.stdout
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["passed"] is False
    assert document["backends"][0]["layers"]["first"]["place"] == "encoder.layers.1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "ort-gpu"], f"there is no backend 'ort-gpu'; .*{', '.join(BACKENDS)}"),
        (["--backends", "ort-cpu,available"], "there is no backend 'available'"),
        (["--tolerance", "fp12=1"], "there is no precision 'fp12'; there are fp32, fp16"),
        (["--tolerance", "-1"], "'-1' is no number above 0"),
        (["--batch", "0"], "0 is not in the range"),
        (["--backends", "ort-cuda"], "error: ort-cuda is not available: .*onnxruntime"),
        (["--backends", "tensorrt"], "error: tensorrt is not available: TensorRT is not installed"),
        (["--checkpoint", "nowhere"], "error: no checkpoint at nowhere"),
    ],
)
def test_what_cannot_be_compared_gives_status_2(
    arguments: list[str], message: str, tiny_bundle: Path
) -> None:
    done = run(tiny_bundle, *arguments)
    assert done.returncode == 2
    assert re.search(message, " ".join(done.stderr.split()))
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_bundle_that_is_not_there_gives_status_2(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing")
    assert done.returncode == 2
    assert "error: there is no bundle at" in done.stderr


def test_a_quantised_bundle_tells_what_rounding_costs(
    quantized_bundle: Path, tiny_checkpoint: Path
) -> None:
    done = run(quantized_bundle, "--checkpoint", tiny_checkpoint, *QUICK)
    assert done.returncode == 0
    assert "ort-cpu  (rounded weights)" in done.stdout
    assert re.search(r"path fast +KL \d\.\de-0\d", done.stdout)
    assert done.stdout.endswith("  passed\n")
    done = run(quantized_bundle)
    assert done.returncode == 2
    assert "give --checkpoint FOLDER" in done.stderr


def test_a_bundle_with_a_cache_of_int8_is_held_against_a_model_that_rounds_it(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = ExportOptions(precision="int8", kv_cache="int8", verify=False)
    export(tiny_checkpoint, tmp_path / "bundle", options)
    done = run(tmp_path / "bundle", "--checkpoint", tiny_checkpoint, *QUICK)
    assert done.returncode == 0
    (distance,) = re.findall(r"with the same rounding: (\d\.\de-\d\d)", done.stdout)
    assert float(distance) < 1e-4
