import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from drl.export import load_checkpoint
from drl.export.model import DualRouterModel, Route
from drl.export.quantization_report import QuantizationReport
from drl.export.verify import Expectation, expect
from drl.export.verify_quantized import (
    Flips,
    QuantizedExpectation,
    compare_predictions,
    compare_quantized,
    distances,
    expect_quantized,
)
from drl.runtime.backends import Backend, StepInputs, StepOutputs, open_backend
from drl.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def expected(tiny_model: DualRouterModel) -> Expectation:
    return expect(tiny_model)


def compared(bundle: Path, fp32: Expectation, other: Expectation) -> QuantizationReport:
    """An fp32 bundle, held against eager models as a quantised one would be."""
    backend = open_backend(Bundle.load(bundle))
    try:
        return compare_quantized(QuantizedExpectation(fp32, other, other), backend, 1, 4)
    finally:
        backend.close()


def test_a_bundle_without_rounding_loses_nothing(tiny_bundle: Path, expected: Expectation) -> None:
    report = compared(tiny_bundle, expected, expected)
    assert report.passed
    assert (report.path_choices, report.path_choices_same) == (4, 4)
    assert [layer.layer for layer in report.layers] == [
        "encoder.layers.1",
        "decoder.layers.3",
        "decoder.layers.1",
    ]
    tokens = 1 + 5 + 12 + 24
    assert [layer.choices for layer in report.layers] == [tokens, 3 * 4 * 36, 4 * 36]
    assert all(layer.flips < 0.01 * layer.choices for layer in report.layers)
    for path in report.paths:
        assert path.positions == path.same == 4 * 36
        assert path.clear == path.clear_same
        assert path.kl_max < 1e-6
        assert path.distance < 1e-5
        assert path.noise == 0


def test_what_another_model_does_is_measured_and_the_rounded_one_decides(
    tiny_checkpoint: Path, tiny_bundle: Path, expected: Expectation
) -> None:
    model = load_checkpoint(tiny_checkpoint).model()
    with torch.no_grad():
        for router in ("encoder.layers.1", "decoder.layers.3"):
            model.get_submodule(f"{router}.ffn.router").weight.mul_(-1)
    other = expect(model)
    as_fp32 = compared(tiny_bundle, other, expected)
    assert as_fp32.passed
    flips = {layer.layer: layer.flips / layer.choices for layer in as_fp32.layers}
    assert flips["encoder.layers.1"] > 0.2
    assert flips["decoder.layers.3"] > 0.2
    assert all(path.kl_mean > 0.01 and path.same < path.positions for path in as_fp32.paths)
    as_rounded = compared(tiny_bundle, expected, other)
    assert not as_rounded.passed


def test_a_path_that_changes_is_counted(tiny_bundle: Path, expected: Expectation) -> None:
    scores = expected.encoded.scores
    assert scores is not None
    turned = dataclasses.replace(scores, logits=-scores.logits)
    encoded = dataclasses.replace(expected.encoded, scores=turned)
    report = compared(tiny_bundle, dataclasses.replace(expected, encoded=encoded), expected)
    # two of the four sequences have a budget for the cheapest path alone
    assert report.path_choices == 4
    assert report.path_choices_same < 4


def test_the_noise_of_a_model_is_small_against_its_rounding(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    found = expect_quantized(checkpoint, "int8")
    triples = zip(found.fp32.calls[2], found.rounded.calls[2], found.shaken.calls[2], strict=True)
    rounding, noise = [], []
    for fp32, rounded, shaken in triples:
        rounding.append(distances(fp32.logits, rounded.logits))
        noise.append(distances(rounded.logits, shaken.logits))
        assert not torch.equal(rounded.logits, shaken.logits)
    assert torch.cat(noise).median() < 0.5 * torch.cat(rounding).median()


def test_predictions_are_compared_by_kl_divergence_and_by_the_likeliest_token() -> None:
    expected = torch.tensor([[[4.0, 0.0, 0.0], [1.0, 0.9, 0.0], [0.0, 3.0, 1.0]]])
    actual = torch.tensor([[[3.0, 1.0, 0.0], [0.9, 1.0, 0.0], [5.0, 8.0, 6.0]]])
    divergence, same, clear = compare_predictions(expected, actual)
    logs = (logits.log_softmax(dim=-1)[0] for logits in (actual, expected))
    kl = functional.kl_div(*logs, reduction="none", log_target=True).sum(dim=-1)
    torch.testing.assert_close(divergence, kl, atol=1e-6, rtol=1e-4)
    assert divergence[2] < 1e-6  # logits that differ by a constant say the same
    assert same.tolist() == [True, False, True]
    assert clear.tolist() == [True, False, True]


def test_a_distance_is_relative_and_nan_is_infinitely_far() -> None:
    expected = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]]])
    actual = torch.tensor([[[3.0, 4.5], [1.0, 0.0], [float("nan"), 0.0]]])
    assert distances(expected, actual).tolist() == [pytest.approx(0.1), 0.0, float("inf")]


def test_flips_are_of_real_tokens_and_the_order_of_experts_does_not_count() -> None:
    ids = torch.tensor([[[0, 1], [2, 3], [-1, -1]]], dtype=torch.int32)
    mask = torch.tensor([[True, True, False]])
    route = Route("decoder.layers.5", ids, torch.ones(1, 3, 2), torch.ones(1, 3, 4), mask)
    flips = Flips()
    flips.compare([route], {5: np.array([[[1, 0], [2, 0], [3, 3]]], np.int32)})
    flips.compare([route], {5: ids.numpy()})
    (layer,) = flips.by_layer()
    assert (layer.layer, layer.choices, layer.flips) == ("decoder.layers.5", 4, 1)


Damage = Callable[[StepInputs, StepOutputs], None]


class Damaged:
    """A backend whose steps are spoiled on their way out."""

    def __init__(self, backend: Backend, damage: Damage) -> None:
        self._backend = backend
        self._damage = damage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def step(self, inputs: StepInputs) -> StepOutputs:
        outputs = self._backend.step(inputs)
        top = outputs.top
        if top is not None:
            top = dataclasses.replace(top, values=top.values.copy(), ids=top.ids.copy())
        outputs = dataclasses.replace(
            outputs,
            logits=outputs.logits.copy(),
            normalisers=outputs.normalisers.copy(),
            top=top,
        )
        self._damage(inputs, outputs)
        return outputs


@pytest.fixture(scope="module")
def rounded(tiny_checkpoint: Path) -> QuantizedExpectation:
    return expect_quantized(load_checkpoint(tiny_checkpoint), "int8")


@pytest.fixture(scope="module")
def backend(quantized_bundle: Path) -> Iterator[Backend]:
    backend = open_backend(Bundle.load(quantized_bundle))
    yield backend
    backend.close()


def replace_logits(outputs: StepOutputs, rows: Any, value: float) -> None:
    """Fill some logits, with normalisers that fit."""
    outputs.logits[rows] = value
    sums = torch.from_numpy(outputs.logits).logsumexp(dim=-1)
    outputs.normalisers[:] = sums.numpy()


def no_prefill(inputs: StepInputs, outputs: StepOutputs) -> None:
    if inputs.tokens.shape[1] > 1 and not inputs.candidates:
        replace_logits(outputs, ..., 0)


def half_a_prefill(inputs: StepInputs, outputs: StepOutputs) -> None:
    if inputs.tokens.shape[1] > 1 and not inputs.candidates:
        replace_logits(outputs, (slice(None), slice(2)), 0)


def no_steps(inputs: StepInputs, outputs: StepOutputs) -> None:
    if inputs.tokens.shape[1] == 1 and not inputs.candidates:
        replace_logits(outputs, ..., 0)


def one_row_of_zeros(inputs: StepInputs, outputs: StepOutputs) -> None:
    if not inputs.candidates:
        replace_logits(outputs, 1, 0)


def one_row_of_nan(_: StepInputs, outputs: StepOutputs) -> None:
    outputs.logits[0] = np.nan


def one_infinite_logit(inputs: StepInputs, outputs: StepOutputs) -> None:
    if inputs.lengths[0] == 9 and not inputs.candidates:
        outputs.logits[3, 0, 7] = -np.inf


def normalisers_of_nan(_: StepInputs, outputs: StepOutputs) -> None:
    outputs.normalisers[:] = np.nan


def normalisers_of_a_part(_: StepInputs, outputs: StepOutputs) -> None:
    outputs.normalisers[0] -= 0.01


def normalisers_of_candidates(inputs: StepInputs, outputs: StepOutputs) -> None:
    if inputs.candidates:
        outputs.normalisers[-1] += 0.01


def candidates_exchanged(_: StepInputs, outputs: StepOutputs) -> None:
    if outputs.top is not None:
        outputs.top.ids[..., :2] = outputs.top.ids[..., 1::-1]


def candidates_of_other_logits(_: StepInputs, outputs: StepOutputs) -> None:
    if outputs.top is not None:
        outputs.top.values[0] += 1e-3


def none(*_: object) -> None:
    pass


@pytest.mark.filterwarnings("ignore:.* many times slower:RuntimeWarning")
@pytest.mark.parametrize(
    ("damage", "failure"),
    [
        (none, ""),
        (no_prefill, "away|candidates"),
        (half_a_prefill, "away|candidates"),
        (no_steps, "away|candidates"),
        (one_row_of_zeros, "away|candidates"),
        (one_row_of_nan, "^logits are not finite on path fast"),
        (one_infinite_logit, "^logits are not finite"),
        (normalisers_of_nan, "^normalisers are not finite"),
        (normalisers_of_a_part, "^normalisers are not those of the logits"),
        (normalisers_of_candidates, "^normalisers are not those of the logits"),
        (candidates_exchanged, "^candidates are not the likeliest tokens"),
        (candidates_of_other_logits, "^candidates have other logits"),
    ],
)
def test_a_damaged_bundle_fails_on_every_path(
    damage: Damage, failure: str, rounded: QuantizedExpectation, backend: Backend
) -> None:
    report = compare_quantized(rounded, Damaged(backend, damage), 1, 4)
    assert report.passed == (damage is none)
    for path in report.paths:
        assert bool(path.failure) == (damage is not none)
    assert re.search(failure, report.paths[0].failure)


@pytest.mark.filterwarnings("ignore:.* many times slower:RuntimeWarning")
@pytest.mark.parametrize("damage", [no_prefill, half_a_prefill, no_steps, one_row_of_zeros])
def test_wrong_logits_fail_by_their_distance_alone(
    damage: Damage, rounded: QuantizedExpectation, backend: Backend
) -> None:
    report = compare_quantized(rounded, Damaged(backend, damage), 1, 4)
    for path in report.paths:
        assert dataclasses.replace(path, fault="").failure.startswith("logits of ")
