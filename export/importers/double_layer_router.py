"""`DoubleLayerRouter` (`double_layer_router`): two `nn.Transformer` stacks and a linear router.

The class pairs an `Encoder` and a `Decoder`, each an `nn.Embedding` and a whole `nn.Transformer`,
with a `Router` of one `nn.Linear(d, 1)` over the encoder's output. As it is usually written down
it does not run: its transformers are called with one argument, the decoder's input is left open,
the router's width is another one, and there is no output head. What is imported is its mended form:

- The encoder is the encoder half of its transformer, the decoder the decoder half of its own, each
  with its final norm. The other halves hold weights too; they are never run and are ignored.
- Source and target tokens have an embedding each. There are no positions.
- The decoder reads the target tokens so far under a causal mask, and all encoder states.
- Logits are `head(decoder_output)`, an `nn.Linear(d, V)` with or without bias. Without a head they
  are products with the decoder's embedding.

What the router's scores a_t = w·h_t + b do depends on `paths` in the configuration. The class
computes them and leaves their use open, so without `paths` they change nothing and are ignored.
With several paths, or one that keeps a part of the states:

- The scores select states: a path keeps the ⌈keep_ratio·S⌉ states of the highest scores, and the
  decoder's attention to a kept state is weighted by σ(a_t).
- The score of a sequence, s = Σ softmax(a)_t · a_t, selects the path: path p, counted from 0, is
  taken if s exceeds exactly p of the ascending `path_thresholds`. Without thresholds it is the
  dearest path that the budget allows.
"""

import itertools
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from drl.export.importers.mapping import Import, Source, rows, same
from drl.export.importers.options import Options
from drl.export.model import ModelConfig, PathConfig, PathRouterConfig

FAMILY = "DoubleLayerRouter"
ACTIVATIONS = {"relu": "relu", "gelu": "gelu"}
# There are no positions; this is as far as caches are laid out unless the configuration says more.
LONGEST = 4096
_UNUSED_HALVES = ("encoder.transformer.decoder.", "decoder.transformer.encoder.")
_ROUTER = ("router.linear.weight", "router.linear.bias")


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint of the mended class."""
    options = Options(values, FAMILY)
    fields = _fields(options, present)
    thresholds = _thresholds(options, fields["paths"])
    options.finish()
    routed = len(fields["paths"]) > 1 or any(path.keep_ratio < 1 for path in fields["paths"])
    router = PathRouterConfig("linear", hidden=2) if routed else None
    config = ModelConfig(path_router=router, **fields)
    tensors = dict(_tensors(config))
    if routed:
        tensors |= _path_router(len(config.paths), thresholds)
    ignored = {name for name in present if name.startswith(_UNUSED_HALVES)}
    return Import(config, tensors, ignored if routed else ignored | set(_ROUTER))


def _fields(options: Options, present: Collection[str]) -> dict[str, Any]:
    d_model, heads = options.integer("embedding_dim"), options.integer("nhead", 8)
    if heads <= 0 or d_model % heads:
        options.problem(f"`embedding_dim` is {d_model}, not a multiple of the {heads} heads")
    layers = options.integer("num_layers")
    options.refuse("bias", (True,), "but projections and norms without biases are not", True)
    pad = options.integer("pad_token_id", 0)
    tied = options.flag("tie_embeddings", "head.weight" not in present)
    return {
        "vocab_size": options.integer("vocab_size"),
        "d_model": d_model,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "num_heads": heads,
        "kv_heads": heads,
        "head_dim": d_model // max(heads, 1),
        "d_ff": options.integer("dim_feedforward", 2048),
        "paths": tuple(_paths(options, layers)),
        "pad_token_id": pad,
        "eos_token_id": options.integer("eos_token_id"),
        "decoder_start_token_id": options.integer(
            "decoder_start_token_id", options.integer("bos_token_id", pad)
        ),
        "max_source_length": options.integer("max_source_length", LONGEST),
        "max_target_length": options.integer("max_target_length", LONGEST),
        "activation": options.choice("activation", ACTIVATIONS, "relu"),
        "norm": "layer",
        "norm_eps": options.number("layer_norm_eps", 1e-5),
        "norm_position": "pre" if options.flag("norm_first", False) else "post",
        "final_norm": True,
        "bias": True,
        "shared_embedding": "decoder.embedding.weight" not in present,
        "tie_embeddings": tied,
        "head_bias": "head.bias" in present,
        "logit_scale": 1.0,
        "position": "none",
    }


def _paths(options: Options, layers: int) -> Iterator[PathConfig]:
    """Yield the paths of the configuration; by default one, of all layers and states."""
    full = tuple(range(layers))
    listed = options.get("paths")
    if listed is None:
        yield PathConfig("full", full)
        return
    if not isinstance(listed, list):
        options.problem(f"`paths` is {listed!r}, not a list")
        return
    for i, path in enumerate(listed):
        if isinstance(path, dict) and set(path) <= {"name", "layers", "keep_ratio"}:
            keep = path.get("keep_ratio", 1.0)
            chosen = path.get("layers", full)
            if (
                isinstance(path.get("name"), str)
                and _are(int, chosen)
                and _are(int | float, [keep])
            ):
                yield PathConfig(path["name"], tuple(chosen), keep_ratio=float(keep))
                continue
        options.problem(
            f"`paths[{i}]` is {path!r}, not an object with `name` and, where it does not run or "
            "keep everything, `layers` and `keep_ratio`"
        )


def _thresholds(options: Options, paths: Sequence[PathConfig]) -> list[float] | None:
    given = options.get("path_thresholds")
    if given is None:
        return None
    if not _are(int | float, given) or len(given) != len(paths) - 1 or given != sorted(given):
        wanted = max(len(paths) - 1, 0)
        options.problem(
            f"`path_thresholds` is {given!r}, not {wanted} ascending numbers, one between each "
            f"two of the {len(paths)} paths"
        )
    return list(given)


def _are(kind: type | types.UnionType, value: Any) -> bool:
    """Whether `value` is a list of numbers of a kind; truth values are none."""
    return isinstance(value, list | tuple) and all(
        isinstance(item, kind) and not isinstance(item, bool) for item in value
    )


def _tensors(config: ModelConfig) -> Iterator[tuple[str, Source]]:
    yield "embedding.weight", same("encoder.embedding.weight")
    if not config.shared_embedding:
        yield "decoder_embedding.weight", same("decoder.embedding.weight")
    if not config.tie_embeddings:
        yield "lm_head.weight", same("head.weight")
    if config.head_bias:
        yield "head_bias", same("head.bias")
    for stack in ("encoder", "decoder"):
        half = f"{stack}.transformer.{stack}"
        yield from _both(f"{stack}.norm", f"{half}.norm")
        for i in range(config.encoder_layers):
            yield from _layer(f"{stack}.layers.{i}", f"{half}.layers.{i}", stack)


def _layer(ours: str, theirs: str, stack: str) -> Iterator[tuple[str, Source]]:
    sublayers = ["self_attention", "ffn"]
    yield from _attention(f"{ours}.self_attention", f"{theirs}.self_attn")
    if stack == "decoder":
        sublayers.insert(1, "cross_attention")
        yield from _attention(f"{ours}.cross_attention", f"{theirs}.multihead_attn")
    yield from _both(f"{ours}.ffn.up", f"{theirs}.linear1")
    yield from _both(f"{ours}.ffn.down", f"{theirs}.linear2")
    for number, sublayer in enumerate(sublayers, start=1):
        yield from _both(f"{ours}.{sublayer}_norm", f"{theirs}.norm{number}")


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    for kind in ("weight", "bias"):
        for part, side in enumerate("qkv"):
            yield f"{ours}.{side}.{kind}", rows(f"{theirs}.in_proj_{kind}", part, 3)
    yield from _both(f"{ours}.o", f"{theirs}.out_proj")


def _both(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", same(f"{theirs}.{kind}")


def _path_router(paths: int, thresholds: list[float] | None) -> dict[str, Source]:
    """Return our path router, whose network computes ℓ_p = p·s − the first p thresholds' sum.

    ℓ_p exceeds ℓ_{p-1} where s exceeds threshold p, so the largest is that of the path to take.
    s passes the network's activation whole, as GELU(x) − GELU(−x) = x. Without thresholds, ℓ_p = p.
    """
    steps = torch.arange(paths, dtype=torch.float64)
    if thresholds is None:
        slopes, offsets = torch.zeros(paths), steps
    else:
        slopes = steps
        offsets = -torch.tensor([0.0, *itertools.accumulate(thresholds)], dtype=torch.float64)

    def signed(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat((tensors[0], -tensors[0]))

    def hidden(tensors: Sequence[Tensor]) -> Tensor:
        both = signed(tensors)
        return torch.cat((both, both.new_zeros(2, 3)), dim=1)  # length, budget, the one group

    weight, bias = _ROUTER
    return {
        "path_router.saliency.weight": same(weight),
        "path_router.saliency.bias": same(bias),
        "path_router.hidden.weight": Source((weight,), hidden),
        "path_router.hidden.bias": Source((bias,), signed),
        "path_router.output.weight": Source((), lambda _: torch.stack((slopes, -slopes), dim=1)),
        "path_router.output.bias": Source((), lambda _: offsets),
    }
