import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from drl.export import ExportOptions, export, load_checkpoint
from drl.export.model import generate
from drl.export.model.generate import pad
from drl.runtime import CheckpointError, Engine, GenerationConfig
from tests.export.importers.oracle import (
    TOLERANCE,
    assert_reproduced,
    random_sources,
    relative,
)
from tests.export.importers.reference import Reference, vary

VOCABULARY = 80
START, LIMIT = 2, 20
SOURCES = random_sources([1, 7, 19, 150, 4, 33, 12, 2], VOCABULARY)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Arguments of the class, and of the transformers in it."""

    embedding_dim: int = 64
    num_layers: int = 2
    nhead: int = 8
    dim_feedforward: int = 2048
    activation: str = "relu"
    norm_first: bool = False

    def transformer(self, **layers: int) -> nn.Transformer:
        """Return a transformer of these sizes."""
        return nn.Transformer(
            self.embedding_dim,
            self.nhead,
            dim_feedforward=self.dim_feedforward,
            activation=self.activation,
            norm_first=self.norm_first,
            batch_first=True,
            **layers,
        )


class Encoder(nn.Module):
    """Embeds and encodes `[B, S]`; `padding` bool `[B, S]` is true where there is no token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, sizes.embedding_dim)
        self.transformer = sizes.transformer(num_encoder_layers=sizes.num_layers)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return torch.as_tensor(
            self.transformer.encoder(self.embedding(x), src_key_padding_mask=padding)
        )


class Decoder(nn.Module):
    """Runs some layers over the target tokens so far, with `gates` `[B, S]` added to attention."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, sizes.embedding_dim)
        self.transformer = sizes.transformer(num_decoder_layers=sizes.num_layers)
        self.heads = sizes.nhead

    def forward(self, y: Tensor, states: Tensor, gates: Tensor, layers: Sequence[int]) -> Tensor:
        steps = y.shape[1]
        future = torch.full((steps, steps), -torch.inf).triu(1)
        weights = gates[:, None].expand(-1, steps, -1).repeat_interleave(self.heads, dim=0)
        x = self.embedding(y)
        for i in layers:
            layer = self.transformer.decoder.layers[i]
            x = layer(x, states, tgt_mask=future, memory_mask=weights)
        return torch.as_tensor(self.transformer.decoder.norm(x))


class Router(nn.Module):
    """Scores every encoder state: `[B, S, d]` to `[B, S, 1]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, encoder_output: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(encoder_output))


@dataclasses.dataclass(frozen=True)
class DecodingPath:
    """A decoding path: layers that run, and the share of states that they see."""

    name: str
    layers: tuple[int, ...]
    keep_ratio: float = 1.0


class DoubleLayerRouter(nn.Module):
    """The mended class; without paths the scores are computed and not used."""

    def __init__(self, sizes: Sizes, head_bias: bool | None = True) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder = Encoder(sizes)
        self.decoder = Decoder(sizes)
        self.router = Router(sizes.embedding_dim)
        width = sizes.embedding_dim
        self.head = None if head_bias is None else nn.Linear(width, VOCABULARY, bias=head_bias)
        self.eos = 1
        self.paths: tuple[DecodingPath, ...] = ()
        self.thresholds: list[float] | None = None

    def encode(self, sources: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return states `[B, S, d]`, scores `[B, S]` and where padding is."""
        x, lengths = pad(sources, 0)
        padding = torch.arange(x.shape[1]) >= lengths[:, None]
        states = self.encoder(x, padding)
        return states, self.router(states).squeeze(-1), padding

    def sequence_score(self, scores: Tensor, padding: Tensor) -> Tensor:
        """Return the mean of the scores `[B]`, each counted by its softmax."""
        weights = scores.masked_fill(padding, -torch.inf).softmax(-1)
        return (weights * scores.masked_fill(padding, 0.0)).sum(-1)

    def choose(self, scores: Tensor, padding: Tensor) -> list[int]:
        """Return the path of every sequence."""
        if self.thresholds is None:
            return [len(self.paths) - 1] * len(scores)
        limits = torch.tensor(self.thresholds)
        return (self.sequence_score(scores, padding)[:, None] > limits).sum(-1).tolist()

    def gates(self, scores: Tensor, padding: Tensor, keep_ratio: float) -> Tensor:
        """Return what the decoder adds to its attention, `[B, S]`: −∞ where a state is left out."""
        if not self.paths:
            return torch.zeros_like(scores).masked_fill(padding, -torch.inf)
        gates = nn.functional.logsigmoid(scores)
        for row, gate in enumerate(gates):
            length = int((~padding[row]).sum())
            kept = math.ceil(round(keep_ratio * 1000) * length / 1000)
            best = scores[row, :length].topk(kept).indices
            gate[[i for i in range(len(gate)) if i not in best]] = -torch.inf
        return gates

    def decode(self, y: Tensor, encoded: tuple[Tensor, Tensor, Tensor], path: int = 0) -> Tensor:
        """Return the logits `[B, T, V]` after each of `y` `[B, T]`."""
        states, scores, padding = encoded
        taken = (
            self.paths[path]
            if self.paths
            else DecodingPath("full", (*range(self.sizes.num_layers),))
        )
        gates = self.gates(scores, padding, taken.keep_ratio)
        output = self.decoder(y, states, gates, taken.layers)
        if self.head is None:
            return output @ self.decoder.embedding.weight.T
        return torch.as_tensor(self.head(output))

    def generate(self, sources: Sequence[Sequence[int]], path: int = 0) -> list[list[int]]:
        """Generate greedily, without start and end token."""
        encoded = self.encode(sources)
        y = torch.full((len(sources), 1), START)
        for _ in range(LIMIT):
            y = torch.cat((y, self.decode(y, encoded, path)[:, -1:].argmax(-1)), dim=1)
        rows = [row[1:] for row in y.tolist()]
        return [row[: row.index(self.eos)] if self.eos in row else row for row in rows]


@torch.no_grad()
def random_router(sizes: Sizes, head_bias: bool | None = True, seed: int = 0) -> DoubleLayerRouter:
    """Return a model whose generations vary, and end at many different steps."""
    torch.manual_seed(seed)
    model = DoubleLayerRouter(sizes, head_bias).eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.normal_(std=0.1)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1.0).mul_(torch.randn_like(weight).sign())
            continue
        # where norms come first, sublayers must outweigh the embedding in the residual stream
        ends_sublayer = name.endswith(("out_proj.weight", "linear2.weight"))
        factor = 4.0 if sizes.norm_first and ends_sublayer else 1.0
        std = 1.0 if "embedding" in name else factor * weight.shape[1] ** -0.5
        weight.normal_(std=std)
        if name.endswith("in_proj_weight"):
            weight[: 2 * sizes.embedding_dim] *= 2.0
    model.router.linear.weight *= 3.0
    return model


@torch.inference_mode()
def varied(
    make: Callable[[int], DoubleLayerRouter],
    generated: Callable[[DoubleLayerRouter], list[list[int]]],
) -> DoubleLayerRouter:
    """Return the first model, by seed, whose generations vary and end at different steps.

    Its end token is the one with which they end at the most different steps.
    """
    for seed in range(40):
        model = make(seed)
        model.eos = -1
        rows = generated(model)

        def ends(token: int, rows: list[list[int]] = rows) -> tuple[int, int]:
            steps = [row.index(token) if token in row else LIMIT for row in rows]
            return len(set(steps)), sum(steps)

        model.eos = max(sorted({token for row in rows for token in row} - {0, 1, START}), key=ends)
        if vary(generated(model)):
            return model
    raise AssertionError("no seed gives generations that vary")


def save(model: DoubleLayerRouter, folder: Path, **changes: Any) -> None:
    """Save the state dict and a `config.json`."""
    sizes = dataclasses.asdict(model.sizes)
    config = {"model_type": "double_layer_router", "vocab_size": VOCABULARY, **sizes}
    config |= {"hidden_dim": 128, "pad_token_id": 0, "eos_token_id": model.eos}
    config |= {"decoder_start_token_id": START, "max_target_length": 64, **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = model.state_dict()
    if model.decoder.embedding is model.encoder.embedding:
        del state["decoder.embedding.weight"]
    save_file(state, folder / "model.safetensors")


@torch.inference_mode()
def expected_of(model: DoubleLayerRouter) -> Reference:
    """Return what a model without paths computes."""
    alone = [model.generate([source])[0] for source in SOURCES]
    assert model.generate(SOURCES) == alone
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, VOCABULARY, (len(SOURCES), 12), generator=generator)
    targets[:, 0] = START
    return Reference(
        sources=SOURCES,
        states=[model.encode([source])[0][0].numpy() for source in SOURCES],
        targets=targets.numpy(),
        logits=model.decode(targets, model.encode(SOURCES)).numpy(),
        tokens=alone,
        limit=LIMIT,
    )


def _one_embedding(model: DoubleLayerRouter) -> None:
    model.decoder.embedding = model.encoder.embedding


def _coarse(model: DoubleLayerRouter) -> None:
    model.bfloat16().float()


PLAIN: dict[str, tuple[Sizes, bool | None, Callable[[DoubleLayerRouter], object]]] = {
    "as torch makes it": (Sizes(num_layers=1), True, lambda _: None),
    "three layers, narrow": (Sizes(36, 3, 4, 100), True, lambda _: None),
    "norms first, GELU, no head": (Sizes(48, 3, 6, 56, "gelu", True), None, lambda _: None),
    "one embedding, head without bias": (Sizes(40, 2, 4, 72), False, _one_embedding),
    "one embedding and no head": (Sizes(40, 2, 4, 72, "gelu"), None, _one_embedding),
    "bfloat16": (Sizes(40, 2, 4, 72, norm_first=True), True, _coarse),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("variant", PLAIN)
def test_the_class_is_reproduced(variant: str, tmp_path: Path) -> None:
    sizes, head_bias, change = PLAIN[variant]

    def make(seed: int) -> DoubleLayerRouter:
        model = random_router(sizes, head_bias, seed)
        change(model)
        return model

    model = varied(make, lambda model: model.generate(SOURCES))
    expected = expected_of(model)
    save(model.bfloat16() if change is _coarse else model, tmp_path / "theirs")
    assert_reproduced(tmp_path / "theirs", expected, tmp_path / "bundle")


PATHS = (
    DecodingPath("fast", (1,), 0.4),
    DecodingPath("middle", (0, 2), 0.75),
    DecodingPath("full", (0, 1, 2)),
)
HALF = (DecodingPath("half", (0, 1, 2), 0.5),)


def _as_json(paths: Sequence[DecodingPath]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(path) for path in paths]


def _routed(paths: Sequence[DecodingPath], by_scores: bool) -> DoubleLayerRouter:
    """Return a model that chooses among paths; with thresholds, by the scores."""

    def make(seed: int) -> DoubleLayerRouter:
        model = random_router(Sizes(48, 3, 6, 72, norm_first=True), seed=seed)
        model.paths = tuple(paths)
        if by_scores:
            _, *scored = model.encode(SOURCES)
            ranked = model.sequence_score(*scored).sort().values
            middles = ((ranked[1:] + ranked[:-1]) / 2)[[2, 5]]
            model.thresholds = [round(middle, 3) for middle in middles.tolist()]
        return model

    return varied(make, lambda model: [tokens for _, tokens in _routed_generations(model)])


def _routed_generations(model: DoubleLayerRouter) -> list[tuple[int, list[int]]]:
    _, *scored = model.encode(SOURCES)
    chosen = model.choose(*scored)
    return [(p, model.generate([x], p)[0]) for p, x in zip(chosen, SOURCES, strict=True)]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(("paths", "by_scores"), [(PATHS, True), (PATHS, False), (HALF, False)])
@torch.inference_mode()
def test_scores_choose_states_and_paths(
    paths: tuple[DecodingPath, ...], by_scores: bool, tmp_path: Path
) -> None:
    model = _routed(paths, by_scores)
    expected = _routed_generations(model)
    save(model, tmp_path / "theirs", paths=_as_json(paths), path_thresholds=model.thresholds)
    ours = load_checkpoint(tmp_path / "theirs").model()
    made = generate(ours, SOURCES, max_new_tokens=LIMIT)
    assert [(row.path, row.tokens) for row in made] == expected
    taken = {path for path, _ in expected}
    assert taken == (set(range(3)) if by_scores else {len(paths) - 1})

    export(tmp_path / "theirs", tmp_path / "bundle")
    with Engine.from_bundle(tmp_path / "bundle", threads=1) as engine:
        results = engine.generate(SOURCES, GenerationConfig(max_new_tokens=LIMIT))
        assert [(r.path, r.tokens) for r in results] == [(paths[p].name, t) for p, t in expected]
        most = (len(paths) - 1) // 2  # of two thirds of the longest path's layers
        limited = engine.generate(SOURCES, GenerationConfig(max_new_tokens=1), budget=0.7)
        assert [r.path for r in limited] == [paths[min(p, most)].name for p, _ in expected]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@torch.inference_mode()
def test_every_path_computes_what_the_class_does(tmp_path: Path) -> None:
    model = _routed(PATHS, by_scores=True)
    save(model, tmp_path, paths=_as_json(PATHS), path_thresholds=model.thresholds)
    ours = load_checkpoint(tmp_path).model()
    encoded = model.encode(SOURCES)
    found = ours.encode(*pad(SOURCES, 0))
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, VOCABULARY, (len(SOURCES), 12), generator=generator)
    errors = []
    for path in range(len(PATHS)):
        expected = model.decode(targets, encoded, path).numpy()
        sizes = torch.full((len(SOURCES),), targets.shape[1])
        logits, _ = ours.decode(targets, sizes, ours.bridge(found, path))
        errors.append(relative(expected, logits.numpy()))
    print(f"largest relative differences: {errors}")
    assert max(errors) <= TOLERANCE
    assert found.scores is not None
    real = found.source_mask
    assert relative(encoded[1][real].numpy(), found.scores.saliency[real].numpy()) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_path_of_everything_leaves_the_numbers_as_they_are(tmp_path: Path) -> None:
    model = random_router(Sizes(48, 2, 6, 72))
    save(model, tmp_path, paths=[{"name": "all"}])
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.config.path_router is None
    assert not any(name.startswith("path_router") for name in checkpoint.shapes)


FAULTS: dict[str, tuple[Mapping[str, Any], str]] = {
    "heads": ({"nhead": 7}, "`embedding_dim` is 48, not a multiple of the 7 heads"),
    "activation": ({"activation": "tanh"}, "`activation` is 'tanh'"),
    "no biases": ({"bias": False}, "`bias` is False"),
    "no end": ({"eos_token_id": None}, "`eos_token_id` is missing"),
    "paths": ({"paths": "fast"}, "`paths` is 'fast', not a list"),
    "path": ({"paths": [{"name": "a", "experts": 3}]}, "`paths[0]` is {'name': 'a', 'experts'"),
    "layers": ({"paths": [{"name": "a", "layers": [5]}]}, "there are only layers 0 to 1"),
    "thresholds": (
        {"paths": [{"name": "a", "layers": [0]}, {"name": "b"}], "path_thresholds": [1, 2]},
        "`path_thresholds` is [1, 2], not 1 ascending numbers",
    ),
    "thresholds without paths": ({"path_thresholds": [1]}, "not 0 ascending numbers"),
    "a head that must be": ({"tie_embeddings": True}, "not in the model: head.weight"),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(fault: str, tmp_path: Path) -> None:
    changes, message = FAULTS[fault]
    save(random_router(Sizes(48, 2, 6, 72)), tmp_path, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_router_of_another_width_is_named_where_it_is_needed(tmp_path: Path) -> None:
    model = random_router(Sizes(48, 2, 6, 72))
    model.router = Router(32)
    save(model, tmp_path)
    load_checkpoint(tmp_path)  # its scores change nothing
    save(model, tmp_path, paths=[{"name": "half", "keep_ratio": 0.5}])
    with pytest.raises(CheckpointError, match=r"router.linear.weight\) is \[1, 32\]"):
        load_checkpoint(tmp_path)


def test_export_says_nothing_of_the_unused_halves(tmp_path: Path) -> None:
    model = random_router(Sizes(48, 1, 6, 72))
    save(model, tmp_path / "theirs")
    options = ExportOptions(verify=False, target="portable")
    export(tmp_path / "theirs", tmp_path / "bundle", options)
    used = sum(
        weight.numel()
        for name, weight in model.state_dict().items()
        if not name.startswith(("encoder.transformer.decoder", "decoder.transformer.encoder"))
    )
    assert (tmp_path / "bundle" / "weights.bin").stat().st_size < 4 * used + 64 * 100
