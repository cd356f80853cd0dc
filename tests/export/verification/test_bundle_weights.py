from pathlib import Path

import pytest
import torch

from drl.export import ExportOptions, export, save_checkpoint
from drl.export.verification.bundle_weights import model_of_bundle
from drl.export.verify import expect
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BundleError
from tests.export.graph.test_parity import VARIANTS
from tests.export.verification.damage import damaged
from tests.models import random_model, tiny_config

# What no graph holds: prototypes are folded to tables, biases of distances that do not occur and
# positions before the first one are read by nobody.
FOLDED = ("group_router.prototypes", "position_bias.weight", "positions.weight")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_of_a_bundle_is_the_one_that_it_was_made_from(
    variant: str, tmp_path: Path
) -> None:
    model = random_model(tiny_config(**VARIANTS[variant]))
    save_checkpoint(tmp_path / "checkpoint", model)
    export(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(verify=False))
    rebuilt = model_of_bundle(Bundle.load(tmp_path / "bundle"))
    assert not rebuilt.training
    original = model.state_dict()
    assert rebuilt.state_dict().keys() == original.keys()
    for name, value in rebuilt.state_dict().items():
        assert name.endswith(FOLDED) or torch.equal(value, original[name]), name
    ours, theirs = expect(rebuilt), expect(model)
    assert torch.equal(ours.encoded.states, theirs.encoded.states)
    for one, two in zip(ours.calls, theirs.calls, strict=True):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.logits, b.logits)
            assert all(
                torch.equal(x.expert_ids, y.expert_ids)
                for x, y in zip(a.routes, b.routes, strict=True)
            )


def test_graphs_without_their_weights_are_refused_by_name(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    def forget(model: object) -> None:
        graph = model.graph  # type: ignore[attr-defined]
        value = graph.initializers["encoder.layers.2.ffn.up.weight"]
        value.name = "stray"

    bundle = damaged(tiny_bundle, tmp_path / "bundle", "encoder.onnx", forget)
    with pytest.raises(BundleError, match=r"lack weights .*: encoder\.layers\.2\.ffn\.up\.weight;"):
        model_of_bundle(bundle)


def test_weights_of_another_shape_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    loaded = Bundle.load(tiny_bundle)
    loaded.manifest.model["d_ff"] = 100  # type: ignore[index]
    message = r"tensor `encoder\.layers\.0\.ffn\.up\.weight` .* is .*64, 96.*has .*64, 100"
    with pytest.raises(BundleError, match=message):
        model_of_bundle(loaded)


def test_a_configuration_of_another_version_is_refused(tiny_bundle: Path) -> None:
    loaded = Bundle.load(tiny_bundle)
    loaded.manifest.model["wings"] = 2  # type: ignore[index]
    with pytest.raises(BundleError, match=r"unknown field `wings`.*export the checkpoint again"):
        model_of_bundle(loaded)
