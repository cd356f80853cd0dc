"""Hold our eager model against the `transformers` model of the folder it was imported from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drl.export.model import DualRouterModel
from drl.export.model.generate import pad
from drl.export.parity import TOLERANCE, relative_difference
from drl.runtime.errors import ExportError

_SOURCE_LENGTHS = (3, 17, 40)
_TARGET_LENGTH = 12
_SEED = 21
# transformers 5 runs two experts of an NLLB-MoE layer whatever the router says.
_WRONG_SINCE_5 = ("nllb-moe",)


@dataclass(frozen=True)
class ForeignParity:
    """Largest differences from transformers, relative to the largest value where above 1.

    Attributes:
        version: Of transformers.
        encoder: Of the encoder states.
        logits: Of teacher-forced logits.
    """

    version: str
    encoder: float
    logits: float

    @property
    def passed(self) -> bool:
        """Whether both are within the tolerance."""
        return max(self.encoder, self.logits) <= TOLERANCE


@torch.inference_mode()
def verify_against_transformers(folder: Path, model: DualRouterModel) -> ForeignParity:
    """Compare encoder states and logits over random tokens, in a ragged batch.

    Args:
        folder: The Hugging Face folder. Code that it may hold is not run.
        model: What was imported from it, in evaluation mode.

    Raises:
        ExportError: transformers is missing, cannot load the folder, or is known to be wrong.
    """
    theirs, version = _load(folder)
    config = model.config
    generator = torch.Generator().manual_seed(_SEED)
    special = {config.pad_token_id, config.eos_token_id, config.decoder_start_token_id}
    words = torch.tensor([t for t in range(config.vocab_size) if t not in special])

    def draw(count: int) -> list[int]:
        drawn: list[int] = words[torch.randint(len(words), (count,), generator=generator)].tolist()
        return drawn

    lengths = [min(length, config.max_source_length) for length in _SOURCE_LENGTHS]
    source, source_lengths = pad([draw(n) for n in lengths], config.pad_token_id)
    # transformers drops target tokens beyond an expert's capacity if it is given them at once,
    # and never in generation; so it is given no more than fit.
    full = config.expert_capacity or _TARGET_LENGTH
    width = min(_TARGET_LENGTH, config.max_target_length, full)
    target = torch.tensor([[config.decoder_start_token_id, *draw(width - 1)] for _ in lengths])
    ours = model(source, source_lengths, target, torch.full((len(lengths),), width), path=-1)
    mask = ours.encoded.source_mask
    expected = theirs(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target)
    return ForeignParity(
        version,
        relative_difference(expected.encoder_last_hidden_state[mask], ours.encoded.states[mask]),
        relative_difference(expected.logits, ours.logits),
    )


def _load(folder: Path) -> tuple[Any, str]:
    try:
        import transformers
    except ImportError:
        raise ExportError(
            "--verify-against transformers needs transformers; run `pip install transformers`"
        ) from None
    version: str = transformers.__version__
    try:
        kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if kind in _WRONG_SINCE_5 and int(version.split(".")[0]) >= 5:
            raise ExportError(
                f"transformers {version} computes {kind} models wrongly; "
                "compare with `pip install transformers==4.57.1`"
            )
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"transformers {version} cannot load {folder}: {reason}") from None
    return model.eval(), version
