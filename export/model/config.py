"""The configuration of a dual-router model: one frozen dataclass, checked as a whole."""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from drl.export.model.config_json import read_fields
from drl.runtime.errors import ConfigError

Activation = Literal["silu_glu", "gelu_glu", "relu", "gelu", "gelu_tanh", "silu"]
Norm = Literal["rms", "layer"]
NormPosition = Literal["pre", "post"]
Position = Literal["rope", "t5_bias", "sinusoidal", "learned", "none"]
Gates = Literal["probability", "normalized", "one"]
PathHead = Literal["linear", "attention", "greedy"]

KEEP_DENOMINATOR = 1000
"""Keep ratios are whole thousandths, so that ⌈ρ·S⌉ is exact integer arithmetic everywhere."""


@dataclass(frozen=True)
class PathConfig:
    """One decoding path: which part of the decoder runs for a sequence.

    Attributes:
        name: What callers select it by.
        layers: Indices of the decoder layers that run, ascending.
        experts_per_token: k of every sparse decoder layer on this path.
        keep_ratio: ρ, the share of encoder states the decoder sees, in whole thousandths.
    """

    name: str
    layers: tuple[int, ...]
    experts_per_token: int = 1
    keep_ratio: float = 1.0

    @property
    def keep_thousandths(self) -> int:
        """ρ·1000 as a whole number; ⌈ρ·S⌉ = (S·ρ·1000 + 999) // 1000."""
        return round(self.keep_ratio * KEEP_DENOMINATOR)


@dataclass(frozen=True)
class PathRouterConfig:
    """How a sequence's path is scored.

    Attributes:
        head: `linear` pools by saliency, `attention` by a learned query; both take the arg-max.
            `greedy` pools by saliency and takes the cheapest path with σ(ℓ_p) ≥ `threshold`.
        hidden: Width r of the scoring MLP.
        threshold: θ of the `greedy` head.
    """

    head: PathHead = "linear"
    hidden: int = 64
    threshold: float = 0.5


@dataclass(frozen=True)
class ModelConfig:
    """Every size and choice of the model; fields are orthogonal, none stands for a family.

    Raises:
        ConfigError: On construction, naming all mistakes at once.
    """

    vocab_size: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    num_heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    paths: tuple[PathConfig, ...]
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    max_source_length: int = 512
    max_target_length: int = 512

    activation: Activation = "silu_glu"
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    norm_position: NormPosition = "pre"
    final_norm: bool | None = None
    bias: bool = False
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    shared_embedding: bool = True
    attention_scale: float | None = None
    tie_embeddings: bool = True
    head_bias: bool = False
    logit_scale: float | None = None

    position: Position = "rope"
    rope_theta: float = 10_000.0
    position_buckets: int = 32
    position_max_distance: int = 128
    position_bias_per_layer: bool = False
    position_offset: int = 0
    sinusoid_width: int | None = None

    encoder_sparse_layers: tuple[int, ...] = ()
    decoder_sparse_layers: tuple[int, ...] = ()
    groups: int = 1
    experts_per_group: int = 1
    top_groups: int = 1
    experts_per_token: int = 1
    d_expert: int = 0
    d_shared: int = 0
    gates: Gates = "probability"
    router_bias: bool = False
    expert_capacity: int | None = None
    expert_output_scale: float = 1.0
    path_router: PathRouterConfig | None = None

    def __post_init__(self) -> None:
        """Collect every mistake, then raise once."""
        mistakes = list(_mistakes(self))
        if mistakes:
            raise ConfigError("config: " + "; ".join(mistakes))

    @property
    def num_experts(self) -> int:
        """E = G·M."""
        return self.groups * self.experts_per_group

    @property
    def target_embedding(self) -> str:
        """The module that embeds target tokens, and with a tied head predicts them."""
        return "embedding" if self.shared_embedding else "decoder_embedding"

    @property
    def routes_tokens(self) -> bool:
        """Whether anything reads the level-1 routing: a sparse layer or the path router."""
        return bool(
            self.encoder_sparse_layers or self.decoder_sparse_layers or self.path_router is not None
        )

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm ends each stack: by default where the layers' own norms come first."""
        return self.norm_position == "pre" if self.final_norm is None else self.final_norm

    @property
    def softmax_scale(self) -> float:
        """The attention scale in force: `attention_scale`, by default head_dim^-½."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def output_scale(self) -> float:
        """The logit scale in force: by default d_model^-½ for a tied head, 1 for an untied one."""
        if self.logit_scale is not None:
            return self.logit_scale
        return self.d_model**-0.5 if self.tie_embeddings else 1.0

    @property
    def skippable_layers(self) -> frozenset[int]:
        """Decoder layers that some path leaves out."""
        layers = range(self.decoder_layers)
        return frozenset(i for i in layers if any(i not in path.layers for path in self.paths))

    @property
    def path_costs(self) -> tuple[float, ...]:
        """Decoder layers of each path relative to the longest path, in (0, 1]."""
        longest = max(len(path.layers) for path in self.paths)
        return tuple(len(path.layers) / longest for path in self.paths)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values."""
        plain: dict[str, Any] = dataclasses.asdict(self)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from parsed JSON.

        Raises:
            ConfigError: Unknown, missing or wrongly typed fields, all named at once, or values
                that do not fit together.
        """
        mistakes: list[str] = []
        built = read_fields(cls, values, "", mistakes)
        if mistakes:
            raise ConfigError("config: " + "; ".join(mistakes))
        return cls(**built)


def _mistakes(config: ModelConfig) -> Iterator[str]:
    """Yield one phrase per mistake in the values of a configuration."""
    yield from _size_mistakes(config)
    yield from _choice_mistakes(config)
    yield from _routing_mistakes(config)
    yield from _path_mistakes(config)


_POSITIVE = (
    *("vocab_size", "d_model", "encoder_layers", "decoder_layers", "num_heads", "kv_heads"),
    *("head_dim", "d_ff", "groups", "experts_per_group", "top_groups", "experts_per_token"),
    *("max_source_length", "max_target_length", "norm_eps", "rope_theta"),
    "position_max_distance",
)
_LIMITS = {
    **dict.fromkeys(("max_source_length", "max_target_length"), 2**20),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1000),
}
"""Far beyond any model; a slip of the keyboard ends here and not in an exhausted memory."""


def _size_mistakes(config: ModelConfig) -> Iterator[str]:
    exact = config.position_buckets // 2
    for name in _POSITIVE:
        if getattr(config, name) <= 0:
            yield f"`{name}` is {getattr(config, name)}, must be positive"
    for name, most in _LIMITS.items():
        if getattr(config, name) > most:
            yield f"`{name}` is {getattr(config, name)}, must be at most {most}"
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            yield f"`{field.name}` is {value}, must be finite"
    for name in ("d_expert", "d_shared"):
        if getattr(config, name) < 0:
            yield f"`{name}` is {getattr(config, name)}, must not be negative"
    if config.kv_heads > 0 and config.num_heads % config.kv_heads:
        heads, shared = config.num_heads, config.kv_heads
        yield f"`num_heads` ({heads}) is not a multiple of `kv_heads` ({shared})"
    if config.position == "rope" and config.head_dim % 2:
        yield f"`head_dim` is {config.head_dim}, must be even for rotary positions"
    if config.position == "sinusoidal" and config.d_model % 2:
        yield f"`d_model` is {config.d_model}, must be even for sinusoidal positions"
    if config.position_buckets < 4:
        yield f"`position_buckets` is {config.position_buckets}, must be at least 4"
    elif config.position == "t5_bias" and config.position_max_distance <= exact:
        yield (
            f"`position_max_distance` is {config.position_max_distance}, must exceed the {exact} "
            "distances that have a bucket each"
        )
    for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
        token = getattr(config, name)
        if not 0 <= token < config.vocab_size:
            yield f"`{name}` is {token}, outside the vocabulary of {config.vocab_size}"


def _choice_mistakes(config: ModelConfig) -> Iterator[str]:
    for name, hint in (("activation", Activation), ("position", Position)):
        allowed = typing.get_args(hint)
        if getattr(config, name) not in allowed:
            yield f"`{name}` is {getattr(config, name)!r}, not one of {', '.join(allowed)}"
    router = config.path_router
    if router is not None:
        if router.head not in typing.get_args(PathHead):
            yield f"`path_router.head` is {router.head!r}, not one of linear, attention, greedy"
        if router.hidden <= 0:
            yield f"`path_router.hidden` is {router.hidden}, must be positive"
        if not 0 < router.threshold < 1:
            yield f"`path_router.threshold` is {router.threshold}, must lie between 0 and 1"


def _routing_mistakes(config: ModelConfig) -> Iterator[str]:
    for side in ("encoder", "decoder"):
        sparse: tuple[int, ...] = getattr(config, f"{side}_sparse_layers")
        depth: int = getattr(config, f"{side}_layers")
        yield from _layer_mistakes(sparse, depth, f"{side}_sparse_layers")
    if not config.encoder_sparse_layers and not config.decoder_sparse_layers:
        return
    if config.d_expert == 0:
        yield "`d_expert` is 0, but there are sparse layers"
    if config.top_groups > config.groups:
        yield f"`top_groups` ({config.top_groups}) exceeds `groups` ({config.groups})"
    reachable = config.top_groups * config.experts_per_group
    choices = {"experts_per_token": config.experts_per_token}
    choices |= {f"paths[{i}].experts_per_token": p.experts_per_token for i, p in _paths(config)}
    for name, k in choices.items():
        if k > reachable:
            yield (
                f"`{name}` is {k}, but the {config.top_groups} allowed groups hold only "
                f"{reachable} experts"
            )


def _path_mistakes(config: ModelConfig) -> Iterator[str]:
    if not config.paths:
        yield "`paths` is empty, give at least one"
        return
    names = [path.name for path in config.paths]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two paths are called {name!r}"
    for i, path in _paths(config):
        where = f"paths[{i}]"
        if not path.name or path.name == "auto" or path.name.isdigit():
            yield f"`{where}.name` is {path.name!r}, must be a word other than `auto`"
        yield from _layer_mistakes(path.layers, config.decoder_layers, f"{where}.layers")
        if not path.layers:
            yield f"`{where}.layers` is empty, a path runs at least one layer"
        if path.experts_per_token <= 0:
            yield f"`{where}.experts_per_token` is {path.experts_per_token}, must be positive"
        if not _is_keep_ratio(path.keep_ratio):
            yield f"`{where}.keep_ratio` is {path.keep_ratio}, must be whole thousandths in (0, 1]"
        if path.keep_ratio < 1 and config.path_router is None:
            yield f"`{where}.keep_ratio` is below 1, which needs a `path_router` for the saliency"
    used = {layer for path in config.paths for layer in path.layers}
    layers = range(min(config.decoder_layers, _LIMITS["decoder_layers"]))
    if idle := [layer for layer in layers if layer not in used]:
        yield f"decoder layers {idle} are on no path; leave them out of the model"
    depths = [len(path.layers) for path in config.paths]
    if depths != sorted(depths):
        yield "`paths` must be listed from the fewest layers to the most"
    if len(config.paths) > 1 and config.path_router is None:
        yield "`path_router` is missing, but there is more than one path"


def _is_keep_ratio(ratio: float) -> bool:
    if not 0 < ratio <= 1:
        return False
    return abs(round(ratio * KEEP_DENOMINATOR) / KEEP_DENOMINATOR - ratio) <= 1e-9


def _layer_mistakes(layers: tuple[int, ...], depth: int, where: str) -> Iterator[str]:
    if any(not 0 <= layer < depth for layer in layers):
        yield f"`{where}` is {list(layers)}, there are only layers 0 to {depth - 1}"
    if list(layers) != sorted(set(layers)):
        yield f"`{where}` is {list(layers)}, must ascend without repeats"


def _paths(config: ModelConfig) -> Iterator[tuple[int, PathConfig]]:
    yield from enumerate(config.paths)
