import dataclasses

from drl.export.quantization_report import (
    LIMIT,
    ROW_LIMIT,
    Accuracy,
    LayerFlips,
    PathQuantization,
    QuantizationReport,
)

PATH = PathQuantization(
    "full",
    positions=100,
    kl_mean=0.01,
    kl_max=0.2,
    same=90,
    clear=50,
    clear_same=49,
    distance=0.01,
    noise=0.0,
    row_distance=0.1,
    row_noise=0.0,
)
REPORT = QuantizationReport(
    bytes=61,
    fp32_bytes=242,
    path_choices=4,
    path_choices_same=3,
    layers=(LayerFlips("encoder.layers.1", 300, 3), LayerFlips("decoder.layers.1", 100, 5)),
    paths=(PATH, dataclasses.replace(PATH, path="fast", positions=300, kl_mean=0.05, same=150)),
)


def test_a_summary_weighs_paths_by_their_positions_and_layers_by_their_choices() -> None:
    summary = REPORT.summary()
    assert summary["kl_mean"] == 0.04
    assert summary["tokens_same"] == 0.6
    assert summary["routes_flipped"] == 0.02
    assert (summary["weights_bytes"], summary["weights_bytes_fp32"]) == (61, 242)


def test_the_distance_decides_on_every_path_and_the_noise_of_the_model_is_allowed() -> None:
    assert REPORT.passed
    far = dataclasses.replace(PATH, distance=1.01 * LIMIT)
    noisy = dataclasses.replace(far, noise=0.02 * LIMIT)
    missing = dataclasses.replace(PATH, distance=float("nan"))
    assert noisy.passed
    for bad in (far, missing):
        assert not dataclasses.replace(REPORT, paths=(PATH, bad)).passed


def test_noise_has_a_ceiling() -> None:
    noisy = dataclasses.replace(PATH, noise=9.0, row_noise=9.0)
    assert dataclasses.replace(noisy, distance=0.19, row_distance=0.79).passed
    assert "are 2.1e-01 away (limit 2.0e-01)" in dataclasses.replace(noisy, distance=0.21).failure
    row = dataclasses.replace(noisy, row_distance=0.81)
    assert "one row on path full are 8.1e-01 away (limit 8.0e-01)" in row.failure


def test_one_row_may_be_further_away_than_all_of_them() -> None:
    assert dataclasses.replace(PATH, row_distance=0.99 * ROW_LIMIT).passed
    for far in (1.01 * ROW_LIMIT, float("nan"), float("inf")):
        assert not dataclasses.replace(PATH, row_distance=far).passed


def test_a_fault_fails_whatever_the_distances_are() -> None:
    assert dataclasses.replace(PATH, fault="x is not y").failure == "x is not y on path full"


def test_what_rounding_costs_is_no_failure() -> None:
    poor = dataclasses.replace(PATH, kl_mean=9.0, kl_max=20.0, same=0, clear_same=0)
    assert dataclasses.replace(REPORT, paths=(poor,)).passed


def test_the_file_has_the_accuracy_where_there_was_an_evaluation() -> None:
    assert REPORT.to_dict()["accuracy"] is None
    found = dataclasses.replace(REPORT, accuracy=Accuracy(10, fp32=9, quantized=8)).to_dict()
    assert found["accuracy"] == {"pairs": 10, "fp32": 9, "quantized": 8}
