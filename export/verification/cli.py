"""`drl-verify`: hold a bundle on several backends against eager PyTorch."""

import sys
from pathlib import Path

import click

from drl.export.command_line import StageClock, extra_needed
from drl.export.verification.options import AVAILABLE, BACKENDS, PRECISIONS, VerifyOptions
from drl.runtime.bundle import Bundle
from drl.runtime.commands.common import clean_errors_with
from drl.runtime.errors import nearest_name

FAILED, NOT_COMPARED = 1, 2
_STAGES = {"reference": "running eager PyTorch"} | {
    name: f"running {name}" for name in (*BACKENDS, "rounded")
}


def _read_backends(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the names in a list with commas; none for all that are available.

    Raises:
        click.BadParameter: There is no such backend.
    """
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    if names == (AVAILABLE,):
        return ()
    for name in names:
        if name not in BACKENDS:
            near = nearest_name(name, BACKENDS)
            hint = f"did you mean {near}? " if near else ""
            raise click.BadParameter(
                f"there is no backend {name!r}; {hint}there are {', '.join(BACKENDS)}, and "
                f"{AVAILABLE} alone for all that run here"
            )
    return names


def _read_tolerances(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> dict[str, float]:
    """Return numbers by precision, of `NUMBER` for all and `PRECISION=NUMBER` for one.

    Raises:
        click.BadParameter: One is no positive number, or there is no such precision.
    """
    found: dict[str, float] = {}
    for value in values:
        precision, equals, text = value.rpartition("=")
        if equals and precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise click.BadParameter(f"there is no precision {precision!r}; there are {known}")
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise click.BadParameter(f"{text!r} is no number above 0")
        found |= dict.fromkeys([precision] if equals else PRECISIONS, number)
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="What the bundle was made from, to check the export too. Without it the reference has the "
    "weights in the bundle, which must be fp32.",
)
@click.option(
    "--backends",
    metavar="NAMES",
    callback=_read_backends,
    default=AVAILABLE,
    show_default=True,
    help=f"What to compare, separated by commas: {', '.join(BACKENDS)}; or {AVAILABLE}.",
)
@click.option("--force-routes", is_flag=True, help="Compare with the reference's routes too.")
@click.option("--layers", is_flag=True, help="Find the first part of the model that differs.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Sources.")
@click.option(
    "--source",
    type=click.IntRange(1),
    default=24,
    show_default=True,
    help="Tokens of the longest source.",
)
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=32,
    show_default=True,
    help="Cached single-token steps after a first call of four tokens.",
)
@click.option("--seed", type=int, default=20, show_default=True, help="Of the random inputs.")
@click.option(
    "--tolerance",
    "tolerances",
    metavar="[PRECISION=]NUMBER",
    callback=_read_tolerances,
    multiple=True,
    help="Largest difference of a logit, in the place of the usual one.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write everything as JSON.",
)
@clean_errors_with(NOT_COMPARED)
def main(
    bundle: Path,
    checkpoint: Path | None,
    backends: tuple[str, ...],
    force_routes: bool,
    layers: bool,
    batch: int,
    source: int,
    steps: int,
    seed: int,
    tolerances: dict[str, float],
    json_file: Path | None,
) -> None:
    """Compare BUNDLE on several backends with eager PyTorch, on the same random inputs.

    Exits with 0 if all are within their limits, 1 if one is not, and 2 if something could not be
    compared.
    """
    loaded = Bundle.load(bundle)
    options = VerifyOptions(
        backends,
        checkpoint,
        force_routes=force_routes,
        layers=layers,
        batch=batch,
        source=source,
        steps=steps,
        seed=seed,
        tolerances=tolerances,
    )
    with extra_needed():  # PyTorch takes seconds, and Ctrl-C works from the first
        from drl.export.bundle_writer import write_json
        from drl.export.verification.tables import describe
        from drl.export.verification.verifier import verify
    clock = StageClock(_STAGES)
    try:
        found = verify(loaded, options, progress=clock)
    except BaseException:
        clock.finish(note="failed")
        raise
    clock.finish()
    click.echo(describe(found))
    if json_file is not None:
        write_json(json_file, found.to_dict())
    if not found.passed:
        sys.exit(FAILED)
