"""What a step must read, against sizes taken from the model."""

from pathlib import Path

import pytest

from drl.benchmarks.cells import Cell
from drl.benchmarks.work import count_work, read_weights
from drl.export import ExportOptions, export
from drl.export.model import DualRouterModel
from drl.export.options import Precision
from drl.plugins.ops.panels import PANEL
from drl.runtime.bundle import Bundle
from tests.models import TINY


def _elements(model: DualRouterModel, *parts: str, without: str = " ") -> int:
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if all(part in name for part in parts) and without not in name
    )


def _padding(model: DualRouterModel, prefix: str) -> int:
    """The elements that dense FFNs of a layer read beyond their own: panels are whole."""
    return sum(
        -len(parameter) % PANEL * parameter.shape[1]
        for name, parameter in model.named_parameters()
        if name.startswith(prefix) and name.endswith((".gate.weight", ".up.weight", ".down.weight"))
    )


def _decoder_elements(model: DualRouterModel, layers: tuple[int, ...]) -> int:
    total = TINY.vocab_size * TINY.d_model  # the tied head
    for layer in layers:
        prefix = f"decoder.layers.{layer}."
        total += _elements(model, prefix, without=".experts.")
        # Keys and values of encoder states are the bridge's work.
        total -= _elements(model, prefix, "cross_attention.k.")
        total -= _elements(model, prefix, "cross_attention.v.")
        total += _padding(model, prefix)
    return total


@pytest.mark.parametrize(("path", "layers"), [("fast", (0, 3)), ("full", (0, 1, 2, 3))])
def test_bytes_are_those_of_the_layers_on_the_path(
    tiny_bundle: Path, tiny_model: DualRouterModel, path: str, layers: tuple[int, ...]
) -> None:
    bundle = Bundle.load(tiny_bundle)
    work = count_work(bundle, read_weights(bundle), Cell(1, 8, 4, path), experts_in_use=3.0)
    expected = 4 * _decoder_elements(tiny_model, layers)
    assert work.weight_bytes == pytest.approx(expected, abs=4096)  # rotary tables, constants
    sparse = [layer for layer in TINY.decoder_sparse_layers if layer in layers]
    experts = sum(_elements(tiny_model, f"decoder.layers.{i}.", ".experts.") for i in sparse)
    assert work.expert_bytes == pytest.approx(4 * experts * 3 / TINY.num_experts)
    assert work.experts_in_use == 3.0


def test_products_grow_with_rows_and_bytes_with_experts(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    weights = read_weights(bundle)
    one = count_work(bundle, weights, Cell(1, 8, 4, "full"), experts_in_use=2.0)
    many = count_work(bundle, weights, Cell(4, 8, 4, "full", 2), experts_in_use=6.0)
    assert many.flops == pytest.approx(8 * one.flops)
    assert many.weight_bytes == one.weight_bytes
    assert many.expert_bytes == pytest.approx(3 * one.expert_bytes)
    assert many.cache_bytes == pytest.approx(8 * one.cache_bytes)
    assert many.cross_bytes == pytest.approx(4 * one.cross_bytes)  # beams share their source's


def test_keys_and_values_are_counted_for_kept_states_and_past_tokens(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    work = count_work(bundle, read_weights(bundle), Cell(1, 9, 5, "fast"), 1.0)
    state = 2 * 2 * TINY.kv_heads * TINY.head_dim * 4  # keys and values of two layers, fp32
    assert work.cross_bytes == 5 * state  # half of 9 states, rounded up
    assert work.cache_bytes == 3 * state  # 1 to 5 tokens


def test_keys_and_values_of_int8_are_counted_with_their_scales(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = ExportOptions(precision="int8", kv_cache="int8", verify=False)
    export(tiny_checkpoint, tmp_path / "bundle", options)
    bundle = Bundle.load(tmp_path / "bundle")
    work = count_work(bundle, read_weights(bundle), Cell(1, 9, 5, "fast"), 1.0)
    state = 2 * 2 * TINY.kv_heads * (TINY.head_dim + 2)
    assert work.cross_bytes == 5 * state
    assert work.cache_bytes == 3 * state


def test_a_dense_model_has_no_experts(dense_bundle: Path) -> None:
    bundle = Bundle.load(dense_bundle)
    work = count_work(bundle, read_weights(bundle), Cell(1, 8, 4, "full"), None)
    assert work.expert_bytes == 0
    assert work.experts_in_use is None
    assert work.bytes == work.weight_bytes + work.cache_bytes + work.cross_bytes


@pytest.mark.parametrize("precision", ["int8", "int8-block", "int4"])
def test_products_of_packed_weights_are_counted_by_their_values(
    precision: Precision, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Not by the bytes, of which a value of int4 has half a one."""
    export(tiny_checkpoint, tmp_path / "bundle", ExportOptions(precision=precision, verify=False))
    found, plain = (
        count_work(bundle, read_weights(bundle), Cell(1, 8, 4, "full"), 2.0)
        for bundle in (Bundle.load(tmp_path / "bundle"), Bundle.load(tiny_bundle))
    )
    assert found.int8_ops + found.flops == pytest.approx(plain.flops, rel=0.2)  # some is padding
    assert found.flops < 0.1 * found.int8_ops
