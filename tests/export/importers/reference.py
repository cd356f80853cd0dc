"""Random models of `transformers` and what they compute: the truth that importers are held against.

Nothing of DRL is imported here, so that this file also runs as a script under another version of
`transformers`: `python reference.py SPEC.json FOLDER RESULT.npz`.
"""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

OTHER_PYTHON = "DRL_TRANSFORMERS_4"
"""Environment variable: the Python of an environment with `transformers` 4.57."""

_MOST_DRAWS = 30

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Drawing:
    """How large random weights are, so that generations vary and end at different steps.

    Attributes:
        query: Query projections, relative to fan_in^-½; with 1.5 as for keys, attention is sharp
            where scores are scaled by head_dim^-½. Without that scale give 1.5 · head_dim^-½.
        key: Key projections, relative to fan_in^-½.
        output: The projections that end a sublayer, relative to fan_in^-½: they outweigh the
            embedding in the residual stream.
        embedding: Standard deviation of word embeddings.
        position: Standard deviation of learned positions and of relative position biases.
    """

    query: float = 1.5
    key: float = 1.5
    output: float = 4.0
    embedding: float = 1.0
    position: float = 1.0


@dataclass(frozen=True)
class Spec:
    """A random model to save, and what to compute with it.

    Attributes:
        architecture: A class of `transformers`, such as `T5ForConditionalGeneration`.
        config: Its configuration's arguments.
        sources: Token ids of each source.
        drawing: How large the weights are.
        seed: Of the targets, and the first one tried for the weights.
        limit: Most tokens to generate, the end token included.
        choose_end: Whether to draw until generations vary with some token as the end token;
            else the first draw stays, and the configuration's end token.
        target_length: Tokens of the forced targets, the start token included.
        dtype: What the weights are rounded to and stored in; all arithmetic is fp32.
        untie: Whether to give the head weights of its own, whatever the configuration says.
        generate: Further arguments of `generate`.
    """

    architecture: str
    config: Mapping[str, Any]
    sources: Sequence[Sequence[int]]
    drawing: Drawing = Drawing()
    seed: int = 0
    limit: int = 24
    choose_end: bool = True
    target_length: int = 20
    dtype: str = "float32"
    untie: bool = False
    generate: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Return the specification that was written by `to_json`."""
        values = json.loads(text)
        return cls(**values | {"drawing": Drawing(**values["drawing"])})

    def to_json(self) -> str:
        """Return the specification as text."""
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True)
class Reference:
    """What `transformers` computes.

    Attributes:
        sources: Token ids of each source.
        states: Encoder states of each source alone, `[S, d]`.
        targets: Decoder inputs int64 `[B, T]`, the start token first.
        logits: After each target token, `[B, T, V]`: of all sources as one padded batch, fed
            token by token with a cache.
        tokens: Greedy generations, without start and end token; the same alone and in a batch.
        limit: Most tokens that were to be generated, the end token included.
    """

    sources: list[list[int]]
    states: list[Array]
    targets: npt.NDArray[np.int64]
    logits: Array
    tokens: list[list[int]]
    limit: int

    def save(self, path: Path) -> None:
        """Write everything to an `.npz` file."""
        states = {f"states.{i}": each for i, each in enumerate(self.states)}
        lists = json.dumps([self.sources, self.tokens, self.limit])
        np.savez(path, lists=lists, targets=self.targets, logits=self.logits, **states)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `save` wrote."""
        with np.load(path) as data:
            sources, tokens, limit = json.loads(str(data["lists"]))
            states = [data[f"states.{i}"] for i in range(len(sources))]
            return cls(sources, states, data["targets"], data["logits"], tokens, limit)


def save_random(spec: Spec, folder: Path) -> nn.Module:
    """Save a random model with `save_pretrained`; return it as fp32 in evaluation mode."""
    import transformers

    architecture = getattr(transformers, spec.architecture)
    model: nn.Module = architecture(architecture.config_class(**spec.config)).eval()
    if spec.untie:
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        head.weight = nn.Parameter(torch.empty_like(head.weight))
    dtype = getattr(torch, spec.dtype)
    for seed in range(spec.seed, spec.seed + _MOST_DRAWS):
        draw(model, spec.drawing, seed)
        _round(model, dtype)
        if not spec.choose_end or choose_end(model, spec):
            break
    copy.deepcopy(model).to(dtype).save_pretrained(folder)  # type: ignore[operator]
    return model


def _round(model: Any, dtype: torch.dtype) -> None:
    """Round what is stored; tables that are made anew at loading keep their precision."""
    unstored = model._keys_to_ignore_on_save or ()
    state = {name: t.to(dtype) for name, t in model.state_dict().items() if name not in unstored}
    model.load_state_dict(state, strict=False)


@torch.no_grad()
def draw(model: nn.Module, drawing: Drawing, seed: int) -> None:
    """Draw every weight anew, norms and biases too: none keeps a value that hides a mistake."""
    torch.manual_seed(seed)
    words = model.get_input_embeddings().weight  # type: ignore[operator]
    factors = {"q": drawing.query, "q_proj": drawing.query, "k": drawing.key}
    factors |= {"k_proj": drawing.key, "o": drawing.output, "out_proj": drawing.output}
    factors |= {"wo": drawing.output, "fc2": drawing.output}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if "Sinusoidal" in type(module).__name__:
            continue  # a table that follows from the configuration
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            if weight.ndim == 1 and name == "bias":
                weight.normal_(std=0.1)
            elif weight.ndim == 1:
                # either sign, so that a tied head does not prefer the token it was just given
                weight.normal_(mean=1.0, std=0.1).mul_(torch.randn_like(weight).sign())
            elif isinstance(module, nn.Embedding):
                weight.normal_(std=drawing.embedding if weight is words else drawing.position)
                if module.padding_idx is not None:
                    weight[module.padding_idx] = 0.0  # as in trained models: it is never chosen
            else:
                factor = factors.get(path.rsplit(".", 1)[-1], 1.0)
                weight.normal_(std=factor * weight.shape[-1] ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("final_logits_bias"):
            buffer.normal_()


@torch.inference_mode()
def choose_end(model: Any, spec: Spec) -> bool:
    """Make that token the end token with which generations end at the most different steps.

    Returns:
        Whether they vary then.
    """
    ids, mask = _padded(spec.sources, model.config.pad_token_id)
    model.generation_config.eos_token_id = None  # first let all run on
    rows = _generate(model, spec, ids, mask)

    def steps(token: int) -> list[int]:
        return [row.index(token) if token in row else spec.limit for row in rows]

    reserved = {0, 1, 2, model.config.pad_token_id, model.config.decoder_start_token_id}
    possible = sorted({token for row in rows for token in row} - reserved)
    end = max(possible, key=lambda token: (len(set(steps(token))), sum(steps(token))), default=1)
    model.config.eos_token_id = end
    model.generation_config.eos_token_id = end
    return vary([row[:step] for row, step in zip(rows, steps(end), strict=True)])


def vary(made: Sequence[Sequence[int]]) -> bool:
    """Return whether most generations differ, some use many tokens, and they end at many steps."""
    different = len({tuple(tokens) for tokens in made}) > len(made) // 2
    rich = sum(len(set(tokens)) > 2 for tokens in made) > len(made) // 3
    return different and rich and len({len(tokens) for tokens in made}) >= min(4, len(made))


def _generate(model: Any, spec: Spec, ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Generate greedily; return the tokens of every row without the start token."""
    from transformers import DynamicCache, EncoderDecoderCache

    greedy: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": spec.limit}
    # the cache that version 5 makes has as many layers as the encoder, too few for deep decoders
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    options = greedy | dict(spec.generate) | {"past_key_values": cache}
    return [row[1:] for row in model.generate(ids, attention_mask=mask, **options).tolist()]


@torch.inference_mode()
def compute(model: Any, spec: Spec) -> Reference:
    """Run a model over the sources: encoder states, forced logits and greedy generations."""
    config = model.config
    alone = [_padded([source], config.pad_token_id) for source in spec.sources]
    batch, mask = _padded(spec.sources, config.pad_token_id)
    states = [model.get_encoder()(ids, attention_mask=real)[0][0] for ids, real in alone]
    generator = torch.Generator().manual_seed(spec.seed)
    shape = (len(spec.sources), spec.target_length)
    targets = torch.randint(3, config.vocab_size, shape, generator=generator)
    targets[:, 0] = config.decoder_start_token_id
    single = [_until_end(model, _generate(model, spec, *each))[0] for each in alone]
    together = _until_end(model, _generate(model, spec, batch, mask))
    if single != together:
        raise AssertionError("transformers itself generates otherwise in a batch: scale less")
    return Reference(
        sources=[list(source) for source in spec.sources],
        states=[each.numpy() for each in states],
        targets=targets.numpy(),
        logits=_forced_logits(model, batch, mask, targets).numpy(),
        tokens=single,
        limit=spec.limit,
    )


def _forced_logits(model: Any, sources: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    from transformers import DynamicCache, EncoderDecoderCache

    encoded = model.get_encoder()(sources, attention_mask=mask, return_dict=True)
    past, logits = EncoderDecoderCache(DynamicCache(), DynamicCache()), []
    for t in range(targets.shape[1]):
        output = model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=targets[:, t : t + 1],
            past_key_values=past,
            use_cache=True,
        )
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def _padded(sources: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, sources))
    ids = torch.tensor([[*source, *[pad] * (longest - len(source))] for source in sources])
    lengths = torch.tensor([len(source) for source in sources])
    return ids, (torch.arange(longest) < lengths[:, None]).long()


def _until_end(model: Any, rows: list[list[int]]) -> list[list[int]]:
    end = model.config.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in rows]


def reference(spec: Spec, folder: Path) -> Reference:
    """Save the random model of a specification in `folder`, and compute with it."""
    return compute(save_random(spec, folder), spec)


def other_python() -> str | None:
    """Return the Python of an environment with `transformers` 4.57, if one is named."""
    named = os.environ.get(OTHER_PYTHON)
    return named and str(Path(named).absolute())


def reference_by(python: str, spec: Spec, folder: Path) -> Reference:
    """Do as `reference` does, with the `transformers` of another Python."""
    folder.mkdir(parents=True, exist_ok=True)
    request, result = folder / "spec.json", folder / "reference.npz"
    request.write_text(spec.to_json(), encoding="utf-8")
    command = [python, "-W", "ignore", __file__, str(request), str(folder), str(result)]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{python} failed: {done.stderr}")
    found = Reference.load(result)
    request.unlink()
    result.unlink()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, where, to = map(Path, sys.argv[1:])
    reference(Spec.from_json(given.read_text(encoding="utf-8")), where).save(to)
