from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drl.export.model import DualRouterModel
from drl.export.verification.options import VerifyOptions
from drl.export.verification.report import BackendReport
from drl.export.verification.verifier import verify
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError, BundleError, CheckpointError, ExportError
from tests.export.verification.damage import Change, attribute, damaged, epsilon, with_weights
from tests.models import DENSE, random_model, tiny_config

ON_CPU = ("ort-cpu", "portable", "tensorrt-form")


def report_of(bundle: Bundle, backend: str, **options: object) -> BackendReport:
    given = VerifyOptions((backend,), steps=6, **options)  # type: ignore[arg-type]
    (report,) = verify(bundle, given).backends
    return report


def culprit(report: BackendReport) -> tuple[str, str]:
    """The part that a report names, and the path."""
    assert report.layers is not None
    part = report.layers.culprit(report.limits)
    assert part is not None
    return part.place, part.path


@pytest.mark.parametrize("backend", ON_CPU)
def test_an_intact_bundle_passes_in_every_comparison(backend: str, tiny_bundle: Path) -> None:
    report = report_of(Bundle.load(tiny_bundle), backend, layers=True, force_routes=True)
    assert report.failures == ()
    assert report.passed
    assert report.precision == ("fp16" if backend == "tensorrt-form" else "fp32")
    for comparison in (report.free, report.forced):
        assert comparison is not None
        assert [path.path for path in comparison.paths] == ["fast", "balanced", "full"]
        for path in comparison.paths:
            assert 0 < path.mean < path.relative <= path.largest
            assert path.relative <= report.limits.logits
            assert path.all_positions == 4 * 10
            assert path.clear_same == path.clear > 0
        layers = [route.layer for route in comparison.routes]
        assert layers == ["encoder.layers.1", "decoder.layers.1", "decoder.layers.3"]
    assert all(path.positions == path.all_positions for path in report.forced.paths)  # type: ignore[union-attr]
    assert report.layers is not None
    assert report.layers.first is None
    assert report.layers.inside == ()


def test_parts_are_told_in_the_order_in_which_they_run(tiny_bundle: Path) -> None:
    layers = report_of(Bundle.load(tiny_bundle), "ort-cpu", layers=True).layers
    assert layers is not None
    encoder = [part.place for part in layers.places if not part.path]
    fast = [part.place for part in layers.places if part.path == "fast"]
    assert encoder == [
        "encoder.embedding",
        *(f"encoder.layers.{i}" for i in range(3)),
        "encoder.norm",
        "path_router",
    ]
    assert fast == [
        "bridge.selection",
        "bridge.layers.0",
        "bridge.layers.3",
        "decoder.embedding",
        "decoder.layers.0",
        "decoder.layers.3",
        "head",
    ]


MISTAKES: dict[str, tuple[str, Change, tuple[str, str]]] = {
    "encoder, norm of an FFN": (
        "encoder.onnx",
        epsilon("encoder/layers.0/ffn_norm"),
        ("encoder.layers.0.ffn", ""),
    ),
    "encoder, norm of attention": (
        "encoder.onnx",
        epsilon("encoder/layers.2/self_attention_norm"),
        ("encoder.layers.2.self_attention", ""),
    ),
    "encoder, final norm": ("encoder.onnx", epsilon("encoder/norm"), ("encoder.norm", "")),
    "decoder, cross-attention on all paths": (
        "decoder.onnx",
        epsilon("decoder/layers.3/cross_attention/q"),
        ("decoder.layers.3.cross_attention", "fast"),
    ),
    "decoder, a layer of one path alone": (
        "decoder.onnx",
        attribute("decoder/layers.1/cross_attention", "scale", 0.5),
        ("decoder.layers.1.cross_attention", "full"),
    ),
    "decoder, scale of cached attention": (
        "decoder.onnx",
        attribute("decoder/layers.2/self_attention", "scale", 0.5),
        ("decoder.layers.2.self_attention", "balanced"),
    ),
    "decoder, final norm": ("decoder.onnx", epsilon("head"), ("head", "fast")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_graph_is_named_without_a_checkpoint(
    name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    file, change, expected = MISTAKES[name]
    bundle = damaged(tiny_bundle, tmp_path / "bundle", file, change)
    report = report_of(bundle, "ort-cpu", layers=True)
    assert not report.passed
    assert culprit(report) == expected
    assert f"{expected[0]} is the first part that differs" in report.failures[-1]
    # what comes after it works on wrong states, and is right all the same
    assert report.layers is not None
    layer = expected[0].removesuffix(".ffn").removesuffix(".self_attention")
    layer = layer.removesuffix(".cross_attention")
    wrong = [part.place for part in report.layers.places if part.exceeds(report.limits)]
    assert set(wrong) == {layer}
    inside = [part.place for part in report.layers.inside if part.exceeds(report.limits)]
    assert inside == ([] if layer == expected[0] else [expected[0]])
    last = report.layers.places[-1]
    assert last.place == "head"
    assert last.drift > 10 * report.limits.states


@pytest.mark.parametrize("backend", ["portable", "tensorrt-form"])
def test_a_mistake_in_the_canonical_decoder_is_that_of_backends_made_from_it(
    backend: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    change = epsilon("decoder/layers.3/ffn_norm", 2.0)
    bundle = damaged(tiny_bundle, tmp_path / "bundle", "decoder.canonical.onnx", change)
    report = report_of(bundle, backend, layers=True)
    assert not report.passed
    assert culprit(report) == ("decoder.layers.3.ffn", "fast")
    assert report_of(bundle, "ort-cpu").passed


def scaled(array: np.ndarray) -> None:
    array *= 1.01


def with_experts_exchanged(array: np.ndarray) -> None:
    array[:] = array[:, ::-1].copy()  # [d, E]


WEIGHTS: dict[str, tuple[str, Callable[[np.ndarray], None], tuple[str, str]]] = {
    "FFN": ("encoder.layers.2.ffn.up.weight", scaled, ("encoder.layers.2.ffn", "")),
    "an expert": ("decoder.layers.1.ffn.experts.down", scaled, ("decoder.layers.1.ffn", "full")),
    "cross-attention": (
        "decoder.layers.2.cross_attention_norm.weight",
        scaled,
        ("decoder.layers.2.cross_attention", "balanced"),
    ),
    "keys of the source": (
        "decoder.layers.3.cross_attention.k.weight",
        scaled,
        ("bridge.layers.3", "fast"),
    ),
    "path router": ("path_router.output.weight", scaled, ("path_router", "")),
    "embedding": ("embedding.weight", scaled, ("encoder.embedding", "")),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_changed_weight_is_named_against_the_checkpoint(
    name: str, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensor, change, expected = WEIGHTS[name]
    bundle = with_weights(tiny_bundle, tmp_path / "bundle", tensor, change)
    report = report_of(bundle, "ort-cpu", layers=True, checkpoint=tiny_checkpoint)
    assert not report.passed
    assert culprit(report) == expected
    # without it, the reference has the same weights, and the graphs are right
    assert report_of(bundle, "ort-cpu", layers=True).passed


def test_panels_that_differ_from_the_canonical_weights_are_named_without_a_checkpoint(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    tensor = "decoder.layers.2.cross_attention.q.weight.panels"
    bundle = with_weights(tiny_bundle, tmp_path / "bundle", tensor, scaled)
    report = report_of(bundle, "ort-cpu", layers=True)
    assert not report.passed
    assert culprit(report) == ("decoder.layers.2.cross_attention", "balanced")
    assert report_of(bundle, "portable", layers=True).passed


def test_a_router_that_chooses_others_is_told_from_drift(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensor = "decoder.layers.3.ffn.router.weight"
    bundle = with_weights(tiny_bundle, tmp_path / "bundle", tensor, with_experts_exchanged)
    report = report_of(
        bundle, "ort-cpu", layers=True, force_routes=True, checkpoint=tiny_checkpoint
    )
    wrong = {route.layer: route.wrong for route in report.free.routes}
    assert wrong["decoder.layers.3"] > 20
    assert wrong["encoder.layers.1"] == wrong["decoder.layers.1"] == 0
    assert culprit(report) == ("decoder.layers.3.ffn", "fast")
    assert any("decoder.layers.3 takes other experts" in text for text in report.failures)
    assert "tokens to other experts" in report.failures[-1]
    # with the reference's routes nothing else is wrong: its own choices are what differs
    assert report.flips_alone
    assert report.forced is not None
    for path in report.forced.paths:
        assert path.relative < report.limits.logits
        assert path.positions == path.all_positions
        (route,) = (route for route in path.routes if route.layer == "decoder.layers.3")
        assert route.wrong > 5


def test_drift_without_flips_stays_with_forced_routes(tiny_bundle: Path, tmp_path: Path) -> None:
    change = epsilon("head", 0.01)  # after every router
    bundle = damaged(tiny_bundle, tmp_path / "bundle", "decoder.onnx", change)
    report = report_of(bundle, "ort-cpu", force_routes=True)
    assert report.forced is not None
    assert report.forced.paths[0].relative > report.limits.logits
    assert not any("other experts" in text for text in report.failures)
    assert not report.flips_alone


def test_a_saliency_near_a_tie_keeps_other_states_and_its_row_leaves_the_comparison(
    tmp_path: Path,
) -> None:
    from drl.export import ExportOptions, export, save_checkpoint

    config = tiny_config(
        position="t5_bias",
        attention_scale=1.0,
        activation="gelu_glu",
        position_buckets=8,
        position_max_distance=20,
    )
    save_checkpoint(tmp_path / "checkpoint", random_model(config))
    export(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(verify=False))
    options = VerifyOptions(("tensorrt-form",), steps=6, force_routes=True)
    (report,) = verify(Bundle.load(tmp_path / "bundle"), options).backends
    fast = report.free.paths[0]
    assert fast.kept.differ == 1
    assert 0 < fast.kept.widest < report.limits.kept
    assert fast.positions < fast.all_positions
    assert report.passed
    assert report.forced is not None
    assert report.forced.paths[0].positions == fast.all_positions


def test_a_dense_model_has_no_routes_to_force(dense_bundle: Path) -> None:
    report = report_of(Bundle.load(dense_bundle), "portable", layers=True, force_routes=True)
    assert report.passed
    assert report.forced is None
    assert report.free.routes == ()
    assert report.free.path_choices == 0


def test_inputs_follow_the_options(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    options = VerifyOptions(("portable",), batch=3, source=500, steps=0, seed=7)
    found = verify(bundle, options)
    assert found.sample.source_lengths == (1, 24, 48)  # the model's longest source
    assert found.backends[0].free.paths[0].all_positions == 3 * 4
    again = verify(bundle, VerifyOptions(("portable",), batch=1, source=9, steps=0, seed=8))
    assert again.sample.source_lengths == (9,)
    first, other = found.backends[0].free.paths[0], again.backends[0].free.paths[0]
    assert first.largest != other.largest


def test_a_tolerance_takes_the_place_of_the_usual_one(tiny_bundle: Path) -> None:
    report = report_of(Bundle.load(tiny_bundle), "portable", tolerances={"fp32": 1e-9})
    assert report.limits.logits == 1e-9
    assert len([text for text in report.failures if "logits of path" in text]) == 3


@pytest.mark.parametrize("name", ["ort-cuda", "tensorrt", "tensorrt-rtx"])
def test_a_backend_that_is_not_here_is_an_error_if_named(name: str, tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=f"^{name} is not available: .*"):
        verify(Bundle.load(tiny_bundle), VerifyOptions((name,)))


def test_available_takes_what_is_here_and_says_what_is_not(tiny_bundle: Path) -> None:
    found = verify(Bundle.load(tiny_bundle), VerifyOptions(steps=0))
    assert [report.backend for report in found.backends] == list(ON_CPU)
    assert [name for name, _ in found.left_out] == ["ort-cuda", "tensorrt", "tensorrt-rtx"]
    assert all(reason for _, reason in found.left_out)


def test_a_model_beyond_fp16_is_not_held_against_the_fp16_form(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    def far(array: np.ndarray) -> None:
        array *= 1e6

    bundle = with_weights(tiny_bundle, tmp_path / "far", "encoder.layers.2.ffn.down.weight", far)
    found = verify(bundle, VerifyOptions(steps=0))
    assert "tensorrt-form" not in [report.backend for report in found.backends]
    assert "fp16 cannot hold this model" in dict(found.left_out)["tensorrt-form"]
    assert "bf16" in dict(found.left_out)["tensorrt-form"]
    with pytest.raises(ExportError, match=r"^tensorrt-form is not available: fp16 cannot hold"):
        verify(bundle, VerifyOptions(("tensorrt-form",)))


def test_the_checkpoint_of_another_model_is_refused_and_says_how_it_differs(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    from drl.export import save_checkpoint

    save_checkpoint(tmp_path, random_model(tiny_config(**DENSE, norm_eps=1e-5)))
    with pytest.raises(
        CheckpointError, match=r"is not the checkpoint of .*norm_eps is 1e-05 there"
    ):
        verify(Bundle.load(tiny_bundle), VerifyOptions(("portable",), checkpoint=tmp_path))


def test_a_bundle_without_canonical_graphs_is_refused(quantized_bundle: Path) -> None:
    bundle = Bundle.load(quantized_bundle)
    with pytest.raises(ExportError, match="runs on ort-cpu alone, not on portable"):
        verify(bundle, VerifyOptions(("portable",)))
    with pytest.raises(ExportError, match="give --checkpoint FOLDER"):
        verify(bundle, VerifyOptions(("ort-cpu",)))


def test_an_fp32_bundle_of_an_earlier_version_says_what_it_lacks(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    import dataclasses

    loaded = Bundle.load(tiny_bundle)
    earlier = Bundle(loaded.folder, dataclasses.replace(loaded.manifest, canonical={}))
    with pytest.raises(BundleError, match="holds no canonical graphs"):
        verify(earlier, VerifyOptions(("ort-cpu",)))


@pytest.mark.filterwarnings("ignore:.* many times slower:RuntimeWarning")
def test_a_quantised_bundle_is_held_to_the_model_with_its_roundings(
    quantized_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, tiny_model: DualRouterModel
) -> None:
    options = VerifyOptions(checkpoint=tiny_checkpoint, steps=6)
    found = verify(Bundle.load(quantized_bundle), options)
    assert found.passed
    assert found.backends == ()
    assert found.quantization is not None
    assert found.quantization.paths[0].positions == 4 * 10

    def zero(array: np.ndarray) -> None:
        array[:] = 0

    name = "encoder.layers.0.ffn.down.weight.scale"
    spoiled = with_weights(quantized_bundle, tmp_path / "bundle", name, zero)
    assert not verify(spoiled, options).passed


@pytest.mark.parametrize("option", ["layers", "force_routes"])
def test_a_quantised_bundle_is_not_looked_at_layer_by_layer(
    option: str, quantized_bundle: Path, tiny_checkpoint: Path
) -> None:
    given = VerifyOptions(checkpoint=tiny_checkpoint, **{option: True})  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="is for fp32 bundles"):
        verify(Bundle.load(quantized_bundle), given)
