"""Diverse beam search as transformers 4 had it, from the parts that version 4.57 still has.

Nothing of DRL is imported here: this file runs as a script under that version,
`python group_search.py CHECKPOINT CASES.json RESULT.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch


@torch.inference_mode()
def search(model: Any, source: list[int], options: dict[str, Any]) -> list[tuple[list[int], float]]:
    """Return the sequences, without start token, and scores of all beams; the best first.

    Source: Vijayakumar et al. 2018, "Diverse Beam Search", algorithm 1. At each step the groups
    choose one after the other, and what a group has chosen counts against the next ones. A group is
    done by the rule of version 5: what counts is its best beam that goes on, while version 4 took
    the best candidate even if that one had just ended.
    """
    from transformers.generation.beam_search import BeamSearchScorer

    config = model.generation_config
    beams, groups = options["num_beams"], options["num_beam_groups"]
    size, pad, end = beams // groups, config.pad_token_id, config.eos_token_id
    length = 1 + options["max_new_tokens"]
    scorer = BeamSearchScorer(
        1,
        beams,
        torch.device("cpu"),
        length_penalty=options.get("length_penalty", 1.0),
        do_early_stopping=options.get("early_stopping", False),
        num_beam_hyps_to_keep=beams,
        num_beam_groups=groups,
        max_length=length,
    )
    is_done = [each.is_done for each in scorer._beam_hyps]
    for each in scorer._beam_hyps:
        each.is_done = lambda *_: False
    processors = _processors(model, source, options)
    encoded = model.get_encoder()(torch.tensor([source]).expand(beams, -1), return_dict=True)
    tokens = torch.full((beams, 1), config.decoder_start_token_id)
    scores = torch.full((groups, size), -1e9)
    scores[:, 0] = 0.0
    scores = scores.flatten()
    while tokens.shape[1] < length and not scorer.is_done:
        logits = model(encoder_outputs=encoded, decoder_input_ids=tokens).logits[:, -1]
        logprobs = logits.log_softmax(-1)
        chosen = torch.zeros(beams, dtype=torch.long)
        parents = torch.zeros(beams, dtype=torch.long)
        for group in range(groups):
            own = slice(group * size, (group + 1) * size)
            found = processors(
                tokens[own], logprobs[own], current_tokens=chosen, beam_group_idx=group
            )
            best = torch.topk((found + scores[own, None]).flatten(), 2 * size)
            vocabulary = found.shape[1]
            step = scorer.process(
                tokens[own],
                best.values[None],
                best.indices[None] % vocabulary,
                best.indices[None] // vocabulary,
                pad_token_id=pad,
                eos_token_id=end,
                group_index=group,
                decoder_prompt_len=1,
            )
            scores[own] = step["next_beam_scores"]
            best_score, made_length = float(scores[own].max()), tokens.shape[1] + 1
            if not scorer._done[group]:
                scorer._done[group] = is_done[group](best_score, made_length, 1)
            chosen[own] = step["next_beam_tokens"]
            parents[own] = step["next_beam_indices"] + group * size
        tokens = torch.cat((tokens[parents], chosen[:, None]), dim=1)
    made = scorer.finalize(
        tokens, scores, None, None, length, pad_token_id=pad, eos_token_id=end, decoder_prompt_len=1
    )
    return _rows(made, end)


def _processors(model: Any, source: list[int], options: dict[str, Any]) -> Any:
    from transformers import GenerationConfig, LogitsProcessorList
    from transformers.generation.logits_process import HammingDiversityLogitsProcessor

    own = ("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping")
    rest = {name: value for name, value in options.items() if name not in own}
    config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id, **rest)
    config.max_length = 1 + options["max_new_tokens"]
    config._eos_token_tensor = torch.tensor([config.eos_token_id])
    size = options["num_beams"] // options["num_beam_groups"]
    diversity = HammingDiversityLogitsProcessor(
        options["diversity_penalty"], options["num_beams"], options["num_beam_groups"]
    )
    others = model._get_logits_processor(
        config,
        input_ids_seq_length=1,
        encoder_input_ids=torch.tensor([source]).expand(size, -1),
        device="cpu",
        logits_processor=LogitsProcessorList(),
    )
    return LogitsProcessorList([diversity, *others])


def _rows(made: Any, end: int) -> list[tuple[list[int], float]]:
    rows = [row[1:] for row in made["sequences"].tolist()]
    rows = [row[: row.index(end)] if end in row else row for row in rows]
    return list(zip(rows, made["sequence_scores"].tolist(), strict=True))


def main(checkpoint: Path, cases: Path, result: Path) -> None:
    """Search a list of [source, options]."""
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
    given = json.loads(cases.read_text(encoding="utf-8"))
    found = [search(model, source, options) for source, options in given]
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
