from pathlib import Path

import pytest
import torch

from drl.export import Checkpoint, load_checkpoint
from drl.export.packed_weights import FORMATS, PackedParts, pack
from drl.export.weights import each_transposed, joined, stacked
from drl.plugins.ops.packing import PackedWeights, unpack
from tests.models import TINY, tiny_config


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


def test_the_parts_of_a_weight_are_packed_once_and_let_go_of(checkpoint: Checkpoint) -> None:
    reads = []

    def source(_: Checkpoint) -> torch.Tensor:
        reads.append(1)
        return torch.arange(12.0).reshape(3, 4)

    parts = PackedParts("int4", source)
    made = {name: parts.maker(name)(checkpoint) for name in ("packed", "scale", "multiplier")}
    assert len(reads) == 1
    assert not parts._parts
    assert made["multiplier"] is not None
    packed = PackedWeights(
        made["packed"].numpy(), made["scale"].numpy(), made["multiplier"].numpy(), 1, 3, 4
    )
    restored = torch.from_numpy(unpack(packed))[0]
    assert (restored - source(checkpoint)).abs().max() <= 11 / 14 * 1.01


def test_int8_has_no_multipliers(checkpoint: Checkpoint) -> None:
    parts = PackedParts("int8", lambda _: torch.ones(2, 4))
    parts.maker("scale")(checkpoint)
    with pytest.raises(KeyError):
        parts.maker("multiplier")(checkpoint)


def test_matrices_are_joined_stacked_and_turned(checkpoint: Checkpoint) -> None:
    attention = "decoder.layers.0.self_attention"
    names = [f"{attention}.{side}.weight" for side in "qkv"]
    query, key, value = (checkpoint.tensor(name) for name in names)
    one = joined(names)(checkpoint)
    assert one.shape == (64 + 32 + 32, 64)
    assert torch.equal(one[:64], query)
    assert torch.equal(one[64:96], key)
    assert torch.equal(one[96:], value)
    assert torch.equal(stacked(names[1:])(checkpoint), torch.stack([key, value]))
    experts = "decoder.layers.1.ffn.experts.up"
    turned = each_transposed(experts)(checkpoint)
    assert torch.equal(turned[3], checkpoint.tensor(experts)[3].T)


def test_a_turned_stack_is_packed_like_its_matrices(checkpoint: Checkpoint) -> None:
    experts = checkpoint.tensor("decoder.layers.1.ffn.experts.down")
    packed = unpack(pack("int8", experts.transpose(1, 2)))
    alone = unpack(pack("int8", experts[2].T.contiguous()))
    assert torch.equal(torch.from_numpy(packed[2]), torch.from_numpy(alone[0]))


def test_the_embedding_is_packed_where_it_is_a_head_of_8_bits() -> None:
    packs = {name: formats.packs_embedding(TINY, "embedding") for name, formats in FORMATS.items()}
    assert packs == {"int8": True, "int8-block": True, "int4": False, "int4+int8-head": True}
    untied = tiny_config(tie_embeddings=False)
    assert not FORMATS["int8"].packs_embedding(untied, "embedding")
    two = tiny_config(shared_embedding=False)
    assert FORMATS["int8"].packs_embedding(two, "decoder_embedding")
    assert not FORMATS["int8"].packs_embedding(two, "embedding")
