"""The options of `drl-generate`, in the sections of its help screen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from drl.runtime.commands.sections import SectionedOption

Command = Callable[..., None]

_FILE = click.Path(path_type=Path)


def _section(title: str, *options: tuple[tuple[str, ...], dict[str, Any]]) -> list[Any]:
    return [
        click.option(*names, cls=SectionedOption, section=title, **settings)
        for names, settings in options
    ]


def _option(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, settings


def _integer(*names: str, metavar: str = "N", **settings: Any) -> Any:
    return _option(*names, type=int, metavar=metavar, **settings)


def _number(*names: str, metavar: str = "X", **settings: Any) -> Any:
    return _option(*names, type=float, metavar=metavar, **settings)


def _flag(*names: str, **settings: Any) -> Any:
    return _option(*names, is_flag=True, **settings)


_SECTIONS = [
    *_section(
        "Input and output",
        _option("--input", "source", type=_FILE, help="JSON Lines of requests; - for stdin."),
        _option("--output", "target", type=_FILE, help="JSON Lines of results."),
        _flag("--json", "as_json", help="Print each result as a JSON object."),
        _flag("--stream", help="Print text while it is generated."),
        _flag("-v", "--verbose", help="Show the path and the time of each result."),
    ),
    *_section(
        "Generation",
        _option("--config", type=_FILE, help="JSON object of options; those here go first."),
        _option("--do-sample/--no-sample", default=None, help="Draw tokens at random, or do not."),
        _integer("--num-beams", help="Beam search: hypotheses to keep."),
        _integer("--num-return-sequences", help="Results per prompt, a line each."),
        _option("--prefix", metavar="TEXT*", help="Each result begins with this text."),
    ),
    *_section(
        "Length",
        _integer("--max-new-tokens", help="Most tokens to generate [default: all]."),
        _integer("--max-length", help="The same, counting start token and prefix."),
        _integer("--min-new-tokens", help="Do not end before so many tokens."),
        _integer("--min-length", help="The same, counting start token and prefix."),
        _number("--max-time", metavar="SECONDS", help="End after this time, with what there is."),
    ),
    *_section(
        "Sampling",
        _number("--temperature", help="Sample at this temperature; 0 is greedy."),
        _integer("--top-k", metavar="K", help="Sample among the K likeliest tokens."),
        _number("--top-p", metavar="P", help="Sample among the likeliest that reach P."),
        _number("--min-p", metavar="P", help="Bar tokens below P times the likeliest."),
        _number("--typical-p", metavar="P", help="Sample among the most typical that reach P."),
        _number("--epsilon-cutoff", metavar="P", help="Bar tokens less likely than P."),
        _number("--eta-cutoff", metavar="P", help="The same, by how sure the model is."),
        _integer("--seed", help="Make sampling reproducible."),
    ),
    *_section(
        "Beam search",
        _number("--length-penalty", help="Above 0 favours long texts, below 0 short."),
        _option(
            "--early-stopping",
            type=click.Choice(["true", "false", "never"]),
            metavar="WHEN",
            help="true: end when the beams are complete; never: when none can be better.",
        ),
        _integer("--num-beam-groups", help="Diverse beam search: groups of beams."),
        _number("--diversity-penalty", help="Keeps the groups apart."),
    ),
    *_section(
        "Penalties and bars",
        _number("--repetition-penalty", help="Above 1 discourages repetition."),
        _number("--encoder-repetition-penalty", help="Above 1 favours the prompt's tokens."),
        _integer("--no-repeat-ngram-size", help="Repeat no sequence of N tokens."),
        _integer("--encoder-no-repeat-ngram-size", help="Repeat no sequence of N of the prompt."),
        _option(
            "--bad-words", multiple=True, metavar="TEXT*", help="Never write this (repeatable)."
        ),
        _option(
            "--sequence-bias",
            multiple=True,
            type=(str, float),
            metavar="TEXT* X",
            help="Add X to the score of this (repeatable).",
        ),
        _option(
            "--suppress-tokens",
            multiple=True,
            metavar="TOKEN",
            help="Never choose this token (repeatable).",
        ),
        _option(
            "--begin-suppress-tokens",
            multiple=True,
            metavar="TOKEN",
            help="Do not choose it first (repeatable).",
        ),
        _option(
            "--exponential-decay-length-penalty",
            type=(int, float),
            metavar="START FACTOR",
            help="Make the end likelier after START tokens.",
        ),
        _flag(
            "--renormalize-logits",
            default=None,
            flag_value=True,
            help="Normalise the scores after all these.",
        ),
        _flag(
            "--remove-invalid-values",
            default=None,
            flag_value=True,
            help="Mend scores that are no numbers.",
        ),
    ),
    *_section(
        "Forcing",
        _option(
            "--forced-bos",
            "forced_bos_token_id",
            metavar="TOKEN",
            help="First token, such as a language.",
        ),
        _option(
            "--forced-eos",
            "forced_eos_token_id",
            metavar="TOKEN",
            help="Last token at the maximal length.",
        ),
        _option(
            "--forced-decoder-ids",
            multiple=True,
            type=(int, str),
            metavar="N TOKEN",
            help="Token at position N, from 1 (repeatable).",
        ),
    ),
    *_section(
        "Constraints",
        _option("--json-schema", metavar="FILE|TEXT", help="Write JSON of this schema."),
        _option("--regex", metavar="PATTERN", help="Write what matches this as a whole."),
        _option("--grammar", metavar="FILE|TEXT", help="Write a sentence of this grammar."),
    ),
    *_section(
        "Stopping",
        _option(
            "--stop",
            "stop_strings",
            multiple=True,
            metavar="TEXT",
            help="End before this text (repeatable).",
        ),
        _integer(
            "--stop-token-id",
            "stop_token_ids",
            multiple=True,
            metavar="ID",
            help="End at this token (repeatable).",
        ),
    ),
    *_section(
        "Reports (in JSON)",
        _flag("--logprobs", flag_value=True, default=None, help="Report log-probabilities."),
        _integer("--top-logprobs", help="Report the N likeliest tokens of each step."),
        _flag("--experts", help="Report the experts of each token."),
    ),
    *_section(
        "Running",
        _option("--path", default="auto", help="auto, or the name or index of a path."),
        _number("--budget", default=1.0, help="Largest path cost for auto, 0 to 1."),
        _number("--budget-ms", help="The same in milliseconds, as calibrated."),
        _option("--device", default="cpu", help="cpu, cuda, tensorrt or tensorrt-rtx; cuda:1."),
        _integer("--threads", help="Threads [default: DRL_THREADS, or one per core]."),
        _integer("--batch-size", default=32, help="Most sequences at a time."),
        _flag("--no-hash-check", help="Trust the bundle's files to be unaltered."),
    ),
]


def generate_options(command: Command) -> Command:
    """Give a command all options of `drl-generate`."""
    for option in reversed(_SECTIONS):
        command = option(command)
    return command
