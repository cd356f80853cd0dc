"""`drl-bench`: how fast a bundle is on this machine, and how near to what the machine allows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from drl.benchmarks.calibration import calibrate
from drl.benchmarks.cells import sweep
from drl.benchmarks.errors import BenchmarkError
from drl.benchmarks.markdown import markdown
from drl.benchmarks.measure import Settings
from drl.benchmarks.peers.comparison import check_comparable, compare
from drl.benchmarks.peers.registry import PEERS
from drl.benchmarks.run import run
from drl.benchmarks.writing import check_outputs, write_outputs
from drl.runtime.backends import parse_device
from drl.runtime.bundle import Bundle
from drl.runtime.commands.common import clean_errors


class _Counts(click.ParamType[tuple[int, ...]]):
    """Positive integers with commas between them."""

    name = "N,..."

    def convert(self, value: Any, param: Any, context: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no list of positive numbers such as 1,8,32", param, context)
        return tuple(dict.fromkeys(int(part) for part in parts))


_COUNTS = _Counts()
_LENGTH = 64  # of sources and results, where nothing is said
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--batch", type=_COUNTS, default="1,8", help="Sources at a time.")
@click.option("--source", type=_COUNTS, help="Tokens of a source; by default at most 64.")
@click.option("--new", type=_COUNTS, help="Tokens to generate; by default at most 64.")
@click.option("--path", "paths", default="all", help="Names or indices, with commas between them.")
@click.option("--beams", type=_COUNTS, default="1", help="Hypotheses per source.")
@click.option(
    "--first-token", type=_COUNTS, help="Sources, by tokens, to measure one new token of as well."
)
@click.option("--repeats", type=click.IntRange(1), default=5, help="Timed rounds over all cells.")
@click.option("--warm-up", type=click.IntRange(0), default=1, help="Rounds before them.")
@click.option("--device", default="cpu", help="cpu, cuda, tensorrt or tensorrt-rtx; cuda:1.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Of the backend; by default DRL_THREADS or one per core.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of sources and tokens.")
@click.option(
    "--tokens",
    type=click.Choice(["random", "chosen"]),
    default="random",
    help="What decoder steps read: a random token in every row, or what the model chose.",
)
@click.option("--quick", is_flag=True, help="Leave out the machine's floor, load time and memory.")
@click.option("--json", "json_file", type=_FILE, help="Write everything as JSON.")
@click.option("--markdown", "text_file", type=_FILE, help="Write the tables.")
@click.option("--html", "html_file", type=_FILE, help="Write a page with charts.")
@click.option("--plot", "png_file", type=_FILE, help="Write the charts as PNG (extra `bench`).")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The Hugging Face folder that BUNDLE was made from: compares with other engines.",
)
@click.option(
    "--peers",
    "peers_folder",
    type=click.Path(path_type=Path),
    default=Path("build/peers"),
    help="The engines' environments, as `make bench-peers` builds them.",
)
@click.option(
    "--beside",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="BUNDLE",
    help="Another bundle of the same vocabulary to take turns with; needs --checkpoint.",
)
@click.option("--without", multiple=True, help="Leave out engines with this in their name.")
@click.option("--calibrate", "calibrating", is_flag=True, help="Write the paths' costs to BUNDLE.")
@clean_errors
def main(folder: Path, **options: Any) -> None:
    """Measure the bundle in the folder BUNDLE on this machine.

    Combinations of batch, source length, new tokens, path and beams take turns. Prints Markdown.
    With --calibrate, measures instead what `budget_ms` of the runtime needs to know.
    """
    kind, _ = parse_device(options["device"])  # a mistake is found before the bundle is read
    if kind != "cpu" and options["checkpoint"] is not None:
        raise BenchmarkError("other engines are compared on the CPU; leave out --device")
    outputs = [options[name] for name in ("json_file", "text_file", "html_file")]
    check_outputs(outputs, options["png_file"])
    bundle = Bundle.load(folder)
    if options["calibrating"]:
        if any(outputs) or any(options[name] for name in ("png_file", "checkpoint", "beside")):
            raise BenchmarkError(
                "--calibrate writes costs.json only; give it without outputs and comparison"
            )
        given = options["threads"], options["repeats"], options["device"]
        click.echo(calibrate(bundle, *given, progress=_progress))
        return
    given = options["paths"]
    paths = [] if given == "all" else [path.strip() for path in given.split(",")]
    limits = bundle.manifest.limits
    cells = sweep(
        bundle.manifest,
        options["batch"],
        options["source"] or (min(_LENGTH, limits.max_source_length),),
        options["new"] or (min(_LENGTH, limits.max_target_length),),
        paths,
        options["beams"],
    )
    if options["first_token"]:
        if max(options["first_token"]) > limits.max_source_length:
            longest = limits.max_source_length
            raise BenchmarkError(
                f"--first-token is beyond the model's {longest} tokens of a source"
            )
        cells += sweep(bundle.manifest, (1,), options["first_token"], (1,), paths, (1,))
    ours = [bundle, *(Bundle.load(other) for other in options["beside"])]
    if len(ours) > 1 and options["checkpoint"] is None:
        raise BenchmarkError("--beside takes part in the comparison; give --checkpoint as well")
    check_comparable(ours, cells)
    settings = Settings(
        options["repeats"], options["warm_up"], options["tokens"] == "random", options["seed"]
    )
    found = run(
        bundle,
        cells,
        settings,
        threads=options["threads"],
        device=options["device"],
        surroundings=not options["quick"],
        progress=_progress,
    )
    if options["checkpoint"] is not None:
        places = options["checkpoint"], ours, options["peers_folder"]
        peers = [
            peer for peer in PEERS if not any(part in peer.name for part in options["without"])
        ]
        threads = found.threads
        compared = compare(*places, cells, settings, threads, peers=peers, progress=_progress)
        found = replace(found, comparison=compared)
    click.echo(markdown([found]), nl=False)
    write_outputs(
        [found],
        json=options["json_file"],
        text=options["text_file"],
        html=options["html_file"],
        png=options["png_file"],
    )


def _progress(stage: str) -> None:
    click.echo(stage, err=True)


if __name__ == "__main__":
    main()
