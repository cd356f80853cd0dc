from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from drl.export import ExportOptions, export, save_checkpoint
from drl.export.model import DualRouterModel
from drl.export.tensorrt.lowering import LoweringOptions, lower_bundle
from drl.export.tensorrt.numeric_gate import check_precision, fits, sample_magnitudes
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BundleError, ExportError
from tests.models import DENSE, random_model, tiny_config

T5 = DENSE | {
    "position": "t5_bias",
    "attention_scale": 1.0,
    "activation": "relu",
    "kv_heads": 4,
}
DOWN = "decoder.layers.2.ffn.down.weight"


def _bundle(model: DualRouterModel, folder: Path) -> Bundle:
    save_checkpoint(folder / "checkpoint", model)
    export(folder / "checkpoint", folder / "bundle", ExportOptions(verify=False))
    return Bundle.load(folder / "bundle")


def _scaled(name: str, factor: float) -> DualRouterModel:
    """A model like T5, one of whose weights was driven up."""
    model = random_model(tiny_config(**T5))
    with torch.no_grad():
        dict(model.named_parameters())[name].mul_(factor)
    return model


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """T5's known case: a feed-forward layer puts out more than fp16 holds, norms mend it after."""
    return _bundle(_scaled(DOWN, 2e4), tmp_path_factory.mktemp("overflowing"))


def test_a_layer_that_overflows_is_named_with_the_way_out(overflowing: Bundle) -> None:
    with pytest.raises(ExportError) as caught:
        check_precision(overflowing, "fp16")
    message = str(caught.value)
    assert message.startswith("fp16 cannot hold this model: the output of ")
    assert "decoder.layers.2.ffn" in message
    assert "of graph decoder.full reaches " in message
    assert "fp16 ends at 6.55e+04" in message
    assert message.endswith("build with --precision bf16, which has the range of fp32")
    assert len(message.splitlines()) == 1


def test_the_range_of_bf16_is_enough(overflowing: Bundle) -> None:
    check_precision(overflowing, "bf16")


def test_an_encoder_that_overflows_is_found_too(tmp_path: Path) -> None:
    bundle = _bundle(_scaled("encoder.layers.0.ffn.down.weight", 2e4), tmp_path)
    with pytest.raises(ExportError, match=r"in encoder\.layers\.\d.*of graph encoder reaches"):
        check_precision(bundle, "fp16")


def test_half_of_the_range_is_kept_for_other_inputs(overflowing: Bundle, tmp_path: Path) -> None:
    # the magnitude is linear in the weight: bring it to where fp16 would just hold it
    largest = max(sample_magnitudes(overflowing, plugins=False)["decoder.full"].values())
    narrow = _bundle(_scaled(DOWN, 2e4 * 5e4 / largest), tmp_path / "narrow")
    with pytest.raises(ExportError, match=r"reaches 5e\+04 on sample inputs"):
        check_precision(narrow, "fp16")
    roomy = _bundle(_scaled(DOWN, 2e4 * 2.5e4 / largest), tmp_path / "roomy")
    check_precision(roomy, "fp16")


def test_an_ordinary_model_passes_on_every_path(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    check_precision(bundle, "fp16")
    magnitudes = sample_magnitudes(bundle, plugins=False)
    paths = ("fast", "balanced", "full")
    graphs = {"encoder", *(f"{kind}.{path}" for path in paths for kind in ("bridge", "decoder"))}
    assert magnitudes.keys() == graphs
    for tensors in magnitudes.values():
        assert max(tensors.values()) > 0.5
        assert min(tensors.values()) >= 0
    # fp32 all the way: no half precision holds these, so nobody watches them
    assert not any("router" in name and "Softmax" in name for name in magnitudes["encoder"])


def test_magnitudes_are_the_same_at_every_call(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    first, second = (sample_magnitudes(bundle, plugins=False) for _ in range(2))
    assert first == second


def test_a_weight_beyond_the_range_is_named(tmp_path: Path) -> None:
    bundle = _bundle(_scaled(DOWN, 1e7), tmp_path)
    with pytest.raises(ExportError, match=r"layers\.2\.ffn\.down\.weight reaches .*bf16"):
        lower_bundle(bundle, LoweringOptions(), tmp_path)
    lower_bundle(bundle, LoweringOptions("bf16"), tmp_path)


@pytest.mark.parametrize("plugins", [False, True])
def test_fp8_takes_bf16_for_the_rest_where_fp16_is_too_narrow(
    plugins: bool, overflowing: Bundle, tiny_bundle: Path, tmp_path: Path
) -> None:
    wide = lower_bundle(overflowing, LoweringOptions("fp8", plugins=plugins), tmp_path)
    narrow = lower_bundle(
        Bundle.load(tiny_bundle), LoweringOptions("fp8", plugins=plugins), tmp_path
    )
    for graphs, half in ((wide, ir.DataType.BFLOAT16), (narrow, ir.DataType.FLOAT16)):
        assert graphs[0].model.graph.outputs[0].dtype == half
        for graph in graphs:
            operators = [node.op_type for node in graph.model.graph]
            assert operators.count("DequantizeLinear") > operators.count("QuantizeLinear") > 0
    assert not fits(sample_magnitudes(overflowing, plugins=False), "fp16")


def test_a_quantised_bundle_is_refused(quantized_bundle: Path) -> None:
    with pytest.raises(BundleError, match="holds no canonical graphs"):
        check_precision(Bundle.load(quantized_bundle), "fp16")
