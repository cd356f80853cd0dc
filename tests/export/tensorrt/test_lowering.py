"""The lowered graphs compute what the bundle computes, and look as engines need them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from drl.export import ExportOptions, export
from drl.export.tensorrt.lowering import LoweringOptions, lower_bundle
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BundleError, ExportError
from tests.export.tensorrt.forced_decoding import compare
from tests.export.tensorrt.lowered import Array, LoweredModel
from tests.export.tensorrt.subjects import FOREIGN, NUMBERS, SUBJECTS, Subject, make_subject
from tests.models import TINY

NAMES = [
    "encoder",
    *(f"{kind}.{path.name}" for path in TINY.paths for kind in ("bridge", "decoder")),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """The subjects that tests have asked for so far."""
    return {}


@pytest.fixture
def subject(
    request: pytest.FixtureRequest,
    made: dict[str, Subject],
    tmp_path_factory: pytest.TempPathFactory,
) -> Subject:
    name: str = request.param
    if name not in made:
        made[name] = make_subject(name, tmp_path_factory.mktemp("subject"))
    return made[name]


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Subject:
    """The model with every feature, and three paths."""
    random = np.random.default_rng(0)
    sources = [random.integers(3, TINY.vocab_size, n).tolist() for n in (1, 48, 20, 7)]
    return Subject(Bundle.load(tiny_bundle), sources)


@pytest.fixture(scope="module")
def lowered(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> LoweredModel:
    """That model in fp16."""
    return tiny.lower(tmp_path_factory.mktemp("lowered") / "graphs")


@pytest.mark.parametrize("subject", SUBJECTS, indirect=True)
def test_but_for_the_precision_nothing_changes(subject: Subject, tmp_path: Path) -> None:
    model, backend = subject.lower(tmp_path / "graphs", "fp32"), subject.backend()
    for path in range(len(subject.bundle.manifest.paths)):
        found = compare(subject.bundle, backend, model, subject.sources, path, lead=1e-3)
        assert found.flips == found.wrong == 0
        assert max(found.states, found.path_logits, found.logits) < 5e-5
        assert found.tokens > 20


@pytest.mark.parametrize("subject", SUBJECTS, indirect=True)
def test_fp16_chooses_the_same_tokens_where_they_are_clear(
    subject: Subject, tmp_path: Path
) -> None:
    model, backend = subject.lower(tmp_path / "graphs"), subject.backend()
    for path in range(len(subject.bundle.manifest.paths)):
        found = compare(subject.bundle, backend, model, subject.sources, path, lead=0.15)
        assert found.logits < 0.01 * max(found.magnitude, 5)
        assert found.wrong == 0
        assert found.tokens > 10
        assert found.flips <= 1  # near ties of experts, which rounding may decide


def test_beams_of_a_source_read_its_keys(tiny: Subject, lowered: LoweredModel) -> None:
    backend = tiny.backend()
    for path in range(3):
        found = compare(tiny.bundle, backend, lowered, tiny.sources, path, width=2, lead=0.1)
        assert found.rows == 8
        assert found.logits < 0.05
        assert found.wrong == 0


def _greedy(model: LoweredModel, sources: list[list[int]], path: int, steps: int) -> Array:
    """Tokens `[B, steps]` and their logits' rows."""
    decoding = model.decoding(model.bridge(model.encode(sources), path), path)
    tokens = np.full((len(sources), 1), TINY.decoder_start_token_id)
    made = []
    for _ in range(steps):
        outputs = decoding.step(tokens)
        tokens = outputs["top_ids"][:, -1:, 0].astype(np.int64)
        made.append(np.concatenate([tokens, outputs["logits"][:, -1]], axis=1))
    return np.stack(made, axis=1)


def test_a_row_does_not_depend_on_its_batch(tiny: Subject, lowered: LoweredModel) -> None:
    sources = [list(source) for source in tiny.sources]
    for path in range(3):
        together = _greedy(lowered, sources, path, 12)
        for row, source in enumerate(sources):
            alone = _greedy(lowered, [source], path, 12)[0]
            np.testing.assert_array_equal(alone[:, 0], together[row, :, 0])
            np.testing.assert_allclose(alone[:, 1:], together[row, :, 1:], atol=0.03)


def test_cached_steps_give_what_one_call_gives(tiny: Subject, lowered: LoweredModel) -> None:
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (len(tiny.sources), 9))
    for path in range(3):
        cross = lowered.bridge(lowered.encode(tiny.sources), path)
        at_once = lowered.decoding(cross, path).step(tokens)["logits"]
        cached = lowered.decoding(cross, path)
        steps = [cached.step(tokens[:, t : t + 1])["logits"][:, 0] for t in range(9)]
        np.testing.assert_allclose(np.stack(steps, axis=1), at_once, atol=0.03)


def test_padding_among_the_new_tokens_changes_nothing(tiny: Subject, lowered: LoweredModel) -> None:
    random = np.random.default_rng(1)
    tokens = random.integers(0, TINY.vocab_size, (len(tiny.sources), 5))
    new = np.array([5, 3, 1, 4], np.int32)
    cross = lowered.bridge(lowered.encode(tiny.sources), 2)
    first, second = lowered.decoding(cross, 2), lowered.decoding(cross, 2)
    first.step(tokens, new)
    other = tokens.copy()
    other[np.arange(5) >= new[:, None]] = 7
    second.step(other, new)
    after = random.integers(0, TINY.vocab_size, (len(tiny.sources), 1))
    np.testing.assert_allclose(first.step(after)["logits"], second.step(after)["logits"], atol=2e-2)


@pytest.mark.parametrize("capacity", [16, 40])
def test_the_capacity_changes_nothing_but_how_much_fits(
    capacity: int, tiny: Subject, lowered: LoweredModel, tmp_path: Path
) -> None:
    model = tiny.lower(tmp_path / "graphs", capacity=capacity)
    sources = [list(source) for source in tiny.sources]
    short, long = _greedy(model, sources, 1, 14), _greedy(lowered, sources, 1, 14)
    np.testing.assert_array_equal(short[..., 0], long[..., 0])


def test_the_shipped_model_answers_as_its_bundle_does(tmp_path: Path) -> None:
    export(NUMBERS, tmp_path / "bundle", ExportOptions(verify=False))
    bundle = Bundle.load(tmp_path / "bundle")
    limits = bundle.manifest.limits
    random = np.random.default_rng(0)
    sources = [random.integers(3, limits.vocab_size, n).tolist() for n in (4, 9, 17, 30)]
    subject = Subject(bundle, sources)
    model, backend = subject.lower(tmp_path / "graphs"), subject.backend()
    for path in range(3):
        found = compare(bundle, backend, model, sources, path, lead=0.3)
        assert found.flips <= 1
        assert found.wrong == 0
        assert found.tokens > 20
        assert found.logits < 0.005 * found.magnitude


def _shapes(values: Any) -> dict[str, tuple[str, list[int | str]]]:
    kinds = {1: "float32", 6: "int32", 7: "int64", 10: "F", 16: "F"}
    shapes = {}
    for value in values:
        kind = value.type.tensor_type
        dims = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
        shapes[value.name] = kinds[kind.elem_type], dims
    return shapes


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_inputs_and_outputs_are_those_that_backends_rely_on(
    precision: str, tiny: Subject, tmp_path: Path
) -> None:
    options = LoweringOptions(precision, capacity=24, candidates=10)
    graphs = lower_bundle(tiny.bundle, options, tmp_path)
    assert [graph.name for graph in graphs] == NAMES
    assert [graph.path for graph in graphs] == [None, 0, 0, 1, 1, 2, 2]
    proto = onnx.load(tmp_path / "encoder.onnx", load_external_data=False).graph
    assert _shapes(proto.input) == {
        "source_tokens": ("int64", ["B", "S"]),
        "source_lengths": ("int32", ["B"]),
        "budget": ("float32", ["B"]),
    }
    assert _shapes(proto.output) == {
        "encoder_states": ("F", ["B", "S", 64]),
        "saliency": ("float32", ["B", "S"]),
        "path_logits": ("float32", ["B", 3]),
        "encoder_experts.1": ("int32", ["B", "S", 2]),
    }
    proto = onnx.load(tmp_path / "bridge.balanced.onnx", load_external_data=False).graph
    assert _shapes(proto.input) == {
        "encoder_states": ("F", ["B", "S", 64]),
        "source_lengths": ("int32", ["B"]),
        "saliency": ("float32", ["B", "S"]),
    }
    cross = {f"cross_{s}.{i}": ("F", ["B", 2, "K", 16]) for i in (0, 2, 3) for s in "kv"}
    assert _shapes(proto.output) == {
        "cross_bias": ("float32", ["B", "K"]),
        "kept_lengths": ("int32", ["B"]),
        **cross,
    }
    proto = onnx.load(tmp_path / "decoder.balanced.onnx", load_external_data=False).graph
    cache = ("F", ["B", 2, 24, 16])
    assert _shapes(proto.input) == {
        "tokens": ("int64", ["B", "T"]),
        "lengths": ("int32", ["B"]),
        "new_lengths": ("int32", ["B"]),
        "cross_bias": ("float32", ["R", "K"]),
        **{name: ("F", ["R", 2, "K", 16]) for name in cross},
        **{f"past_{s}.{i}": cache for i in (0, 2, 3) for s in "kv"},
    }
    assert _shapes(proto.output) == {
        "logits": ("float32", ["B", "T", 60]),
        "normalisers": ("float32", ["B", "T"]),
        "top_values": ("float32", ["B", "T", 10]),
        "top_ids": ("int32", ["B", "T", 10]),
        **{f"present_{s}.{i}": cache for i in (0, 2, 3) for s in "kv"},
        "decoder_experts.3": ("int32", ["B", "T", 1]),
    }


KINDS = ["every feature", "a bias per layer", "capacity, router bias", *FOREIGN]
FORBIDDEN = {"NonZero", "Compress", "Unique", "If", "Loop", "ScatterND", "GroupQueryAttention"}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
@pytest.mark.parametrize("subject", KINDS, indirect=True)
def test_graphs_are_valid_and_hold_nothing_that_parsers_refuse(
    subject: Subject, precision: str, tmp_path: Path
) -> None:
    for graph in lower_bundle(subject.bundle, LoweringOptions(precision), tmp_path):
        onnx.checker.check_model(str(tmp_path / f"{graph.name}.onnx"), full_check=True)
        nodes = list(graph.model.graph)
        assert {node.domain for node in nodes} == {""}
        assert not {node.op_type for node in nodes} & FORBIDDEN
        for node in nodes:
            if node.op_type == "TopK":
                assert ir.convenience.get_const_tensor(node.inputs[1]) is not None
            if node.op_type == "TensorScatter":
                assert node.inputs[0] is not None
                assert node.inputs[0].is_graph_input()
        names = {str(d) for v in graph.model.graph.inputs for d in v.shape or ()}
        assert {name for name in names if not name.isdigit()} <= {"B", "S", "K", "T", "R"}


@pytest.mark.parametrize("half", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_products_are_half_and_routers_norms_and_logits_float32(
    half: ir.DataType, tiny: Subject, tmp_path: Path
) -> None:
    precision = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}[half]
    for graph in lower_bundle(tiny.bundle, LoweringOptions(precision), tmp_path):
        for node in graph.model.graph:
            kinds = {v.dtype for v in node.inputs if v is not None and v.dtype is not None}
            floats = {kind for kind in kinds if kind.is_floating_point()}
            module = node.metadata_props.get("namespace", "")
            if node.op_type in ("RMSNormalization", "Softmax", "LogSoftmax", "TopK"):
                assert floats == {ir.DataType.FLOAT}, node.name
            elif module.endswith("/router") or "PathScore" in (node.name or ""):
                assert half not in floats or node.op_type == "Cast", node.name
            elif node.op_type in ("MatMul", "Gemm", "Attention", "TensorScatter"):
                assert floats == {half}, node.name


@pytest.mark.parametrize("subject", ["every feature", "capacity, router bias"], indirect=True)
def test_with_plugins_experts_are_operators_of_ours_that_carry_their_bodies(
    subject: Subject, tmp_path: Path
) -> None:
    model, backend = subject.lower(tmp_path / "graphs", plugins=True), subject.backend()
    proto = onnx.load(tmp_path / "graphs" / "decoder.full.onnx", load_external_data=False)
    ours = {node.op_type for node in proto.graph.node if node.domain == "drl"}
    assert ours == {"ExpertRoute", "RoutedFFNInner", "RoutedFFNCombine"}
    assert {function.name for function in proto.functions} == ours
    for path in range(3):
        found = compare(subject.bundle, backend, model, subject.sources, path, lead=0.15)
        assert found.logits < 0.05
        assert found.wrong == 0


def test_weights_are_stored_once_for_all_graphs_in_half_the_room(
    tiny: Subject, tmp_path: Path
) -> None:
    graphs = lower_bundle(tiny.bundle, LoweringOptions(), tmp_path)
    places: dict[int, tuple[str, int]] = {}
    for graph in graphs:
        proto = onnx.load(tmp_path / f"{graph.name}.onnx", load_external_data=False)
        for tensor in proto.graph.initializer:
            external = {entry.key: entry.value for entry in tensor.external_data}
            if external:
                assert external["location"] == "weights.bin"
                place = re.sub(r"\.float16$", "", tensor.name), int(external["length"])
                assert places.setdefault(int(external["offset"]), place) == place
            else:
                assert len(tensor.SerializeToString()) < 400
    size = (tmp_path / "weights.bin").stat().st_size
    assert size <= sum(length for _, length in places.values()) + 64 * len(places)
    assert size < 0.6 * tiny.bundle.file("weights.bin").stat().st_size


def test_lowering_twice_gives_the_same_bytes(tiny: Subject, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        lower_bundle(tiny.bundle, LoweringOptions(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted([*(f"{name}.onnx" for name in NAMES), "weights.bin"])
    for name in files:
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name


def test_a_quantised_bundle_cannot_be_lowered(quantized_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no canonical graphs"):
        lower_bundle(Bundle.load(quantized_bundle), LoweringOptions(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp64"}, "no precision 'fp64'; choose one of fp16, bf16, fp8"),
        ({"capacity": 0}, "capacity of at least 1, not 0"),
        ({"candidates": 0}, "at least 1 candidate is ranked, not 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        LoweringOptions(**options)
