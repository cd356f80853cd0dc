"""How commands write a generated result: as JSON, or for people."""

import json
from typing import Any

import click

from drl.runtime.results import Experts, GenerationResult


def result_record(prompt: object, result: GenerationResult) -> dict[str, Any]:
    """A result as a JSON object; what was not asked for is left out. Times are in milliseconds."""
    times = result.timings
    record: dict[str, Any] = {
        "prompt": prompt,
        "text": result.text,
        "tokens": result.tokens,
        "path": result.path,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "milliseconds": {
            "encode": round(times.encode * 1e3, 3),
            "first_token": round(times.first_token * 1e3, 3),
            "decode": round(times.decode * 1e3, 3),
            "total": round(times.total * 1e3, 3),
        },
        "steps": times.steps,
    }
    if result.path_logits is not None:
        record["path_logits"] = [round(float(value), 6) for value in result.path_logits]
    if result.logprobs is not None:
        record["logprobs"] = [round(value, 6) for value in result.logprobs]
    if result.top_logprobs is not None:
        record["top_logprobs"] = [
            [[token, round(value, 6)] for token, value in top] for top in result.top_logprobs
        ]
    if result.experts is not None:
        record["experts"] = _experts_record(result.experts)
    return record


def json_line(record: dict[str, Any]) -> str:
    """A JSON object on one line, in plain characters wherever they can be written as UTF-8."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold and UTF-8 cannot
        return json.dumps(record)
    return line


def result_note(result: GenerationResult) -> str:
    """The path, the tokens and the time of a result in a few words, dimmed on a terminal."""
    count = len(result.tokens)
    tokens = f"{count} token{'' if count == 1 else 's'}"
    note = f"[{result.path}, {tokens}, {result.timings.total * 1e3:.1f} ms]"
    return click.style(note, dim=True)


def _experts_record(experts: Experts) -> dict[str, Any]:
    return {
        stack: {str(layer): ids.tolist() for layer, ids in layers.items()}
        for stack, layers in (("encoder", experts.encoder), ("decoder", experts.decoder))
    }
