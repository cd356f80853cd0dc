"""How commands write a generated result: as JSON, or for people."""

import json
from typing import Any

import click

from drl.runtime.results import Experts, GenerationResult


def result_record(prompt: object, result: GenerationResult) -> dict[str, Any]:
    """A result as a JSON object; what was not asked for is left out. Times are in milliseconds."""
    times = result.timings
    record = {"prompt": prompt, "text": result.text, "tokens": result.tokens, "path": result.path}
    record["finish_reason"] = result.finish_reason
    record["prompt_tokens"] = result.prompt_tokens
    if result.prefix_tokens:
        record["prefix_tokens"] = result.prefix_tokens
    record["milliseconds"] = {
        "encode": round(times.encode * 1e3, 3),
        "first_token": round(times.first_token * 1e3, 3),
        "decode": round(times.decode * 1e3, 3),
        "total": round(times.total * 1e3, 3),
    }
    record["steps"] = times.steps
    if result.path_logits is not None:
        record["path_logits"] = [round(float(value), 6) for value in result.path_logits]
    record |= _reports(result)
    if result.alternatives:
        record["alternatives"] = [
            {
                "text": other.text,
                "tokens": other.tokens,
                "finish_reason": other.finish_reason,
                **_reports(other),
            }
            for other in result.alternatives
        ]
    return record


def _reports(result: GenerationResult) -> dict[str, Any]:
    """What each of a prompt's results tells for itself, as far as it was asked for."""
    record: dict[str, Any] = {}
    if result.score is not None:
        record["score"] = round(result.score, 6)
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


def result_lines(result: GenerationResult, count: int, notes: bool) -> list[str]:
    """The lines that plain text has for a prompt's results, of which `count` were asked for."""
    results = [result, *result.alternatives]
    if not notes:
        return [each.text for each in results] + [""] * (count - len(results))
    return [
        f"{f'{rank}. ' if count > 1 else ''}{each.text}  {result_note(each)}"
        for rank, each in enumerate(results, 1)
    ]


def result_note(result: GenerationResult) -> str:
    """Path, tokens, score and time of a result in a few words, dimmed on a terminal."""
    count = len(result.tokens)
    words = [result.path, f"{count} token{'' if count == 1 else 's'}"]
    if result.score is not None:
        words.append(f"score {result.score:.3f}")
    words.append(f"{result.timings.total * 1e3:.1f} ms")
    if result.finish_reason == "time":
        words.append("out of time")
    return click.style(f"[{', '.join(words)}]", dim=True)


def _experts_record(experts: Experts) -> dict[str, Any]:
    return {
        stack: {str(layer): ids.tolist() for layer, ids in layers.items()}
        for stack, layers in (("encoder", experts.encoder), ("decoder", experts.decoder))
    }
