"""What a backend computes wrongly fails, whatever the precision allows."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drl.export.model import DualRouterModel
from drl.export.passes import TapLayers
from drl.export.verification.candidates import Portable
from drl.export.verification.comparison import compare_backend
from drl.export.verification.layers import compare_layers, layer_places
from drl.export.verification.limits import LIMITS
from drl.export.verify import Expectation, Sample, compare, expect
from drl.runtime.backends import Backend, CrossAttention, Encoding, open_backend
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError
from tests.export.verification.altered import Altered


@pytest.fixture(scope="module")
def expected(tiny_model: DualRouterModel) -> Expectation:
    return expect(tiny_model, Sample(steps=4))


@pytest.fixture
def backend(tiny_bundle: Path) -> Iterator[Backend]:
    backend = open_backend(Bundle.load(tiny_bundle), "cpu")
    yield backend
    backend.close()


def zero(logits: np.ndarray) -> np.ndarray:
    return np.zeros_like(logits)


def permuted(logits: np.ndarray) -> np.ndarray:
    return np.random.default_rng(5).permutation(logits, axis=-1)


def first_two_exchanged(logits: np.ndarray) -> np.ndarray:
    order = np.argsort(-logits, axis=-1)[..., :2]
    values = np.take_along_axis(logits, order[..., ::-1], axis=-1)
    np.put_along_axis(logits, order, values, axis=-1)
    return logits


def not_a_number(logits: np.ndarray) -> np.ndarray:
    logits[0, 0, 0] = np.nan
    return logits


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize(
    ("change", "failures"),
    [
        (zero, ("logits of path", "clear predictions of path")),
        (permuted, ("logits of path", "clear predictions of path")),
        (first_two_exchanged, ("clear predictions of path",)),
        (not_a_number, ("logits of path full differ by inf", "normalisers or candidates")),
    ],
)
def test_logits_that_say_something_else_fail_in_every_precision(
    precision: str,
    change: Callable[[np.ndarray], np.ndarray],
    failures: tuple[str, ...],
    expected: Expectation,
    backend: Backend,
) -> None:
    found = compare_backend(expected, Altered(backend, logits=change)).failures(LIMITS[precision])
    for text in failures:
        assert any(text in failure for failure in found)
    assert compare_backend(expected, Altered(backend)).failures(LIMITS[precision]) == []


def test_a_backend_without_saliency_or_path_logits_of_a_model_that_has_them_fails(
    expected: Expectation, backend: Backend
) -> None:
    def without_logits(encoding: Encoding) -> Encoding:
        return replace(encoding, path_logits=None)

    found = compare_backend(expected, Altered(backend, without_logits))
    assert found.failures(LIMITS["fp8"]) == ["path logits differ by inf (limit 5.0e-01)"]
    assert not compare(expected, Altered(backend, without_logits)).passed

    class Unscored(Altered):
        def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
            return self._backend.bridge(scored[0], path)

    def without_saliency(encoding: Encoding) -> Encoding:
        scored.append(encoding)
        return replace(encoding, saliency=None)

    scored: list[Encoding] = []
    failures = compare_backend(expected, Unscored(backend, without_saliency)).failures(
        LIMITS["fp8"]
    )
    assert sum("keep other states" in text and "by up to inf" in text for text in failures) == 3


def test_states_kept_are_judged_by_the_least_of_them(
    expected: Expectation, backend: Backend
) -> None:
    """The worst state in the place of the last one kept is no near tie, however close the next."""
    scores = expected.encoded.scores
    assert scores is not None
    worst = int(scores.saliency[3].argmin())

    def favour_worst(encoding: Encoding) -> Encoding:
        saliency = np.array(encoding.saliency)
        saliency[3, worst] = saliency[3].max() + 1
        return replace(encoding, saliency=saliency)

    fast = compare_backend(expected, Altered(backend, favour_worst)).paths[0]
    assert fast.kept.differ == 1
    ranked = scores.saliency[3].sort(descending=True).values
    kept = int(24 * expected.config.paths[0].keep_thousandths / 1000 + 0.999)
    lead = float(ranked[kept - 1] - ranked[-1]) / max(float(ranked.abs().max()), 1.0)
    assert fast.kept.widest == pytest.approx(lead)
    assert lead > float(ranked[kept - 1] - ranked[kept])


def test_places_that_are_not_told_are_named(
    tiny_bundle: Path, tiny_model: DualRouterModel, expected: Expectation
) -> None:
    hidden = {"decoder.layers.0.ffn", "decoder.layers.3.ffn"}
    candidate = Portable(Bundle.load(tiny_bundle))
    with pytest.raises(
        BackendError,
        match=r"the states of decoder\.layers\.0\.ffn, decoder\.layers\.3\.ffn on path fast",
    ):
        compare_layers(
            tiny_model,
            expected,
            lambda places: candidate.open_with([TapLayers(set(places) - hidden)]),
            LIMITS["fp32"],
        )
    assert hidden < layer_places(tiny_model.config)


def one_too_few(memory: CrossAttention) -> CrossAttention:
    return replace(memory, lengths=np.maximum(memory.lengths - 1, 0))


def not_masked(memory: CrossAttention) -> CrossAttention:
    return replace(memory, bias=np.maximum(memory.bias, -100))


@pytest.mark.parametrize("change", [one_too_few, not_masked])
def test_a_bridge_that_keeps_other_states_is_named(
    change: Callable[[CrossAttention], CrossAttention],
    tiny_bundle: Path,
    tiny_model: DualRouterModel,
    expected: Expectation,
) -> None:
    candidate = Portable(Bundle.load(tiny_bundle))
    report = compare_layers(
        tiny_model,
        expected,
        lambda places: Altered(  # type: ignore[arg-type, return-value]
            candidate.open_with([TapLayers(places)]), memory=change
        ),
        LIMITS["fp8"],
    )
    assert report.first is not None
    assert (report.first.place, report.first.path) == ("bridge.selection", "fast")
