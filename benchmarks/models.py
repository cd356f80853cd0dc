"""Checkpoints of named shapes with random weights: `python -m drl.benchmarks.models NAME FOLDER`.

Time does not depend on what weights say, but on what they make a model do: one that repeats a token
uses the same experts again and again. So weights are drawn such that generations vary.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

from drl.benchmarks.errors import BenchmarkError
from drl.export.checkpoint import save_checkpoint
from drl.export.model import DualRouterModel, ModelConfig, PathConfig, PathRouterConfig
from drl.runtime.commands.common import clean_errors

_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_SPECIAL = (_PAD, _END, _UNKNOWN)
_SHARP = 1.5  # of queries and keys, relative to fan_in^-1/2: attention that tells states apart
_LOUD = 4.0  # of sublayers' outputs: they outweigh the embedding in the residual stream


@dataclass(frozen=True)
class Shape:
    """A checkpoint to draw.

    Attributes:
        about: What it is, for people.
        write: Writes it, but for the tokenizer, to a folder; given the vocabulary's size.
        vocab_size: Tokens.
    """

    about: str
    write: Callable[[Path, int], None]
    vocab_size: int = 32128


def _t5(folder: Path, vocab_size: int, **changes: Any) -> None:
    transformers = _transformers()
    config = {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_layers": 6, "num_heads": 8}
    config |= {"vocab_size": vocab_size, "decoder_start_token_id": 0} | changes
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**config))
    draw_foreign(model.eval()).save_pretrained(folder)


def _switch(folder: Path, vocab_size: int, **changes: Any) -> None:
    transformers = _transformers()
    config = {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_layers": 6, "num_heads": 8}
    config |= {"num_decoder_layers": 6, "num_experts": 8, "vocab_size": vocab_size}
    config |= {"num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3}
    config |= {"decoder_start_token_id": 0} | changes
    made = transformers.SwitchTransformersConfig(**config)
    model = transformers.SwitchTransformersForConditionalGeneration(made)
    draw_foreign(model.eval()).save_pretrained(folder)


DRL_SMALL = ModelConfig(
    vocab_size=32128,
    d_model=512,
    encoder_layers=6,
    decoder_layers=6,
    num_heads=8,
    kv_heads=4,
    head_dim=64,
    d_ff=2048,
    paths=(
        PathConfig("fast", layers=(0, 5), experts_per_token=1, keep_ratio=0.5),
        PathConfig("balanced", layers=(0, 1, 3, 5), experts_per_token=1, keep_ratio=0.75),
        PathConfig("full", layers=tuple(range(6)), experts_per_token=2),
    ),
    encoder_sparse_layers=(1, 3, 5),
    decoder_sparse_layers=(1, 3, 5),
    groups=4,
    experts_per_group=2,
    top_groups=2,
    experts_per_token=2,
    d_expert=1024,
    d_shared=1024,
    path_router=PathRouterConfig(),
)
"""Everything that a dual-router model can have, at the size of T5-small."""

DRL_BASE = replace(
    DRL_SMALL,
    d_model=768,
    encoder_layers=12,
    decoder_layers=12,
    num_heads=12,
    kv_heads=6,
    d_ff=3072,
    paths=(
        PathConfig("fast", layers=(0, 4, 8, 11), experts_per_token=1, keep_ratio=0.5),
        PathConfig(
            "balanced", layers=(0, 1, 3, 5, 7, 9, 10, 11), experts_per_token=1, keep_ratio=0.75
        ),
        PathConfig("full", layers=tuple(range(12)), experts_per_token=2),
    ),
    encoder_sparse_layers=tuple(range(1, 12, 2)),
    decoder_sparse_layers=tuple(range(1, 12, 2)),
    d_expert=1536,
    d_shared=1536,
)
"""The same with the width of T5-base."""


def _own(config: ModelConfig) -> Callable[[Path, int], None]:
    def write(folder: Path, vocab_size: int) -> None:
        save_checkpoint(folder, draw_own(replace(config, vocab_size=vocab_size)))

    return write


SHAPES = {
    "t5-small": Shape("T5: d 512, 6+6 layers, 8 heads, d_ff 2048", _t5),
    "switch-small": Shape("Switch: the same, 8 experts in every second layer", _switch),
    "drl-small": Shape("d 512, 6+6 layers, 4 groups x 2 experts, 3 paths", _own(DRL_SMALL)),
    "drl-base": Shape("d 768, 12+12 layers, 4 groups x 2 experts, 3 paths", _own(DRL_BASE)),
}


def write_model(name: str, folder: Path) -> None:
    """Write the checkpoint of a named shape to a folder, which must not hold anything.

    Raises:
        BenchmarkError: There is no such shape, the folder is in use, or transformers is missing.
    """
    if name not in SHAPES:
        raise BenchmarkError(f"there is no shape {name!r}; there are {', '.join(SHAPES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BenchmarkError(f"{folder} is not empty; give a new folder")
    shape = SHAPES[name]
    shape.write(folder, shape.vocab_size)
    write_tokenizer(folder, shape.vocab_size)


@torch.no_grad()
def draw_own(config: ModelConfig, seed: int = 0) -> DualRouterModel:
    """Return a random model in evaluation mode whose generations vary."""
    torch.manual_seed(seed)
    model = DualRouterModel(config).eval()
    sharp = _SHARP * config.head_dim**-0.5 / config.softmax_scale
    factors = {"q.weight": sharp, "k.weight": _SHARP, "saliency.weight": 3.0}
    factors |= dict.fromkeys(("o.weight", "down.weight", "experts.down"), _LOUD)
    for name, parameter in model.named_parameters():
        if name.endswith(("position_bias.weight", "query")):
            parameter.normal_()
        if name.endswith("norm.weight"):
            _draw_norm(parameter)
        for suffix, factor in factors.items():
            if name.endswith(suffix):
                parameter.mul_(factor)
    return model


@torch.no_grad()
def draw_foreign(model: Any, seed: int = 0) -> Any:
    """Draw the weights of a T5 or Switch model of `transformers` anew, so that its outputs vary."""
    torch.manual_seed(seed)
    factors = {"q": _SHARP * model.config.d_kv**-0.5, "k": _SHARP, "o": _LOUD, "wo": _LOUD}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            if weight.ndim == 1:
                _draw_norm(weight)
            elif isinstance(module, nn.Embedding):
                weight.normal_()
            else:
                factor = factors.get(path.rsplit(".", 1)[-1], 1.0)
                weight.normal_(std=factor * weight.shape[-1] ** -0.5)
    return model


def _draw_norm(weight: torch.Tensor) -> None:
    """Of either sign, so that a tied head does not prefer the token it was just given."""
    weight.normal_(mean=1.0, std=0.1).mul_(torch.randn_like(weight).sign())


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer of words `w3`, `w4`, … with a token for every id, also for transformers."""
    words = [*_SPECIAL, *(f"w{index}" for index in range(len(_SPECIAL), vocab_size))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in _SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, _SPECIAL.index(_END))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    about |= {"pad_token": _PAD, "eos_token": _END, "unk_token": _UNKNOWN}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def _transformers() -> Any:
    try:
        transformers: Any = import_module("transformers")
    except ModuleNotFoundError:
        raise BenchmarkError(
            "this shape is written by transformers, which is not installed; "
            'install it with `pip install "drl[dev]"`'
        ) from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(path_type=Path))
@clean_errors
def main(name: str, folder: Path) -> None:
    """Write a checkpoint of the shape NAME with random weights to FOLDER."""
    write_model(name, folder)
    click.echo(f"{folder}  ({SHAPES[name].about}, random weights)")


if __name__ == "__main__":
    main()
