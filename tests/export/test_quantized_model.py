"""The eager model of a bundle's roundings, against roundings written out by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drl.export import load_checkpoint, save_checkpoint
from drl.export.model import DualRouterModel
from drl.export.options import KvCache
from drl.export.packed_weights import formats_of
from drl.export.quantized_model import QuantizedModel, quantized_model, round_rows
from tests.models import DENSE, random_model, tiny_config


def models(
    folder: Path, precision: str, kv_cache: KvCache = "fp32", **changes: Any
) -> tuple[DualRouterModel, DualRouterModel]:
    """A random model, and the same with the roundings of a precision."""
    save_checkpoint(folder, random_model(tiny_config(**changes)))
    checkpoint = load_checkpoint(folder)
    formats = formats_of(precision, kv_cache)  # type: ignore[arg-type]
    return checkpoint.model(), quantized_model(checkpoint, formats)


def test_rows_are_rounded_to_255_steps() -> None:
    x = torch.tensor([[127.0, 0.4, -0.6, 1.5], [0.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 0.5, 0.0]])
    rounded = round_rows(x)
    assert torch.equal(rounded[0], torch.tensor([127.0, 0.0, -1.0, 2.0]))
    assert torch.equal(rounded[1], x[1])
    step = 2 / 127
    assert (rounded[2] - x[2]).abs().max() <= step / 2
    assert torch.allclose(rounded[2] / step, (rounded[2] / step).round(), atol=1e-4)


def rounded_by_column(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(dim=-1, keepdim=True) / 127
    return (weight / scale).round() * scale


def test_the_weights_of_products_are_rounded_and_no_others(tmp_path: Path) -> None:
    plain, rounded = (
        dict(model.named_parameters()) for model in models(tmp_path, "int8", tie_embeddings=False)
    )
    assert plain.keys() == rounded.keys()
    changed = {name for name in plain if not torch.equal(plain[name], rounded[name])}
    leaves = ("q", "k", "v", "o", "up", "gate", "down")
    products = {
        name
        for name in plain
        if ".layers." in name and name.removesuffix(".weight").rsplit(".", 1)[1] in leaves
    }
    assert changed == products | {"lm_head.weight"}
    name = "decoder.layers.1.cross_attention.k.weight"
    assert torch.allclose(rounded[name], rounded_by_column(plain[name]), atol=1e-6)
    experts = "encoder.layers.1.ffn.experts.down"  # [E, in, out]
    by_column = rounded_by_column(plain[experts].transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(rounded[experts], by_column, atol=1e-6)


@pytest.mark.parametrize(("precision", "same"), [("int8", True), ("int4", False)])
def test_a_tied_embedding_has_the_roundings_of_the_bundle(
    precision: str, same: bool, tmp_path: Path
) -> None:
    plain, rounded = models(tmp_path, precision, **DENSE)
    assert torch.equal(rounded.embedding.weight, plain.embedding.weight) != same
    assert (rounded.lm_head is None) == same
    head = rounded.embedding if rounded.lm_head is None else rounded.lm_head
    assert not torch.equal(head.weight, plain.embedding.weight)


@torch.inference_mode()
def test_level_1_is_that_of_the_words_as_they_were(tmp_path: Path) -> None:
    plain, rounded = models(tmp_path, "int8", shared_embedding=False)
    tokens = torch.arange(60)[None]
    for side in ("embedding", "decoder_embedding"):
        expected = plain.embed(tokens, getattr(plain, side))[1]
        found = rounded.embed(tokens, getattr(rounded, side))[1]
        assert expected is not None
        assert found is not None
        assert torch.equal(found.log_probs, expected.log_probs)
        assert torch.equal(found.allowed, expected.allowed)


@torch.inference_mode()
def test_what_products_read_is_rounded(tmp_path: Path) -> None:
    _, model = models(tmp_path, "int8")
    assert isinstance(model, QuantizedModel)
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor], __: Any) -> None:
            seen[name] = inputs[0]

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_hook(note(name))
    model.decoder.register_forward_hook(lambda *call: seen.update(head=call[2][0]))
    source = torch.tensor([[5, 9, 3, 7]])
    model(source, torch.tensor([4]), source, torch.tensor([4]), 2)
    assert len(seen) > 40
    for name, x in seen.items():
        assert torch.allclose(round_rows(x), x, atol=1e-6 * float(x.abs().max())), name
        steps = x / (x.abs().amax(dim=-1, keepdim=True) / 127)
        assert torch.allclose(steps, steps.round(), atol=1e-3), name


@torch.inference_mode()
def test_what_attention_reads_is_rounded_where_the_cache_is_int8(tmp_path: Path) -> None:
    """Every key and value is a whole number of steps."""
    source, lengths = torch.tensor([[5, 9, 3, 7], [8, 2, 6, 0]]), torch.tensor([4, 3])
    held = {}
    for kv_cache in ("fp32", "int8"):
        _, model = models(tmp_path / kv_cache, "int8", kv_cache)
        memory = model.bridge(model.encode(source, lengths, torch.ones(2)), 2)
        cache = model.decoder.empty_cache(2, 5, memory.path)
        for tokens in (torch.tensor([[2, 5], [2, 7]]), torch.tensor([[4], [9]])):
            new = torch.full((2,), tokens.shape[1])
            model.decode(tokens, new, memory, cache)
        own = [
            side[:, :, :3] for layer in cache.layers.values() for side in (layer.keys, layer.values)
        ]
        held[kv_cache] = [*own, *memory.keys.values(), *memory.values.values()]
    layers = len(tiny_config().paths[2].layers)
    assert len(held["int8"]) == 4 * layers
    for exact, rounded in zip(held["fp32"], held["int8"], strict=True):
        assert off_the_grid(rounded) < 1e-3 < off_the_grid(exact)
        assert not torch.equal(exact, rounded)
        # Later layers read what rounding made of earlier ones.
        assert (exact - rounded).norm() < 0.1 * exact.norm()


def off_the_grid(x: Tensor) -> float:
    """How far values are from whole steps, in steps, of which a head's largest has 126 or 127."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    steps = [x * (most / largest) for most in (126, 127)]
    off = [(each - each.round()).abs().amax(dim=-1).nan_to_num() for each in steps]  # zeros are
    return float(torch.minimum(*off).max())
