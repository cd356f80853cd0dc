"""Puts results together: `python -m drl.benchmarks.publish A.json B.json TARGET`.

Writes TARGET.json, TARGET.md, TARGET.html and TARGET.png of all runs, with what they say about the
goals of `targets`, and TARGET-peers.png of the run that was compared with the most other engines.
"""

from pathlib import Path

import click

from drl.benchmarks.findings import read_json
from drl.benchmarks.plot import plot_peers
from drl.benchmarks.writing import check_outputs, write_outputs
from drl.runtime.commands.common import clean_errors

_FILE = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("results", nargs=-1, required=True, type=_FILE)
@click.argument("target", type=_FILE)
@clean_errors
def main(results: tuple[Path, ...], target: Path) -> None:
    """Put the RESULTS of several `drl-bench --json` together as TARGET.json, .md, .html, .png."""
    runs = [run for path in results for run in read_json(path)]
    files = {kind: target.with_name(f"{target.name}.{kind}") for kind in ("json", "md", "html")}
    png = target.with_name(f"{target.name}.png")
    check_outputs(list(files.values()), png)
    write_outputs(
        runs, json=files["json"], text=files["md"], html=files["html"], png=png, with_goals=True
    )
    written = [*files.values(), png]
    compared = [(len(run.comparison.peers), run) for run in runs if run.comparison is not None]
    if compared:
        written.append(target.with_name(f"{target.name}-peers.png"))
        plot_peers(max(compared, key=lambda pair: pair[0])[1], written[-1])
    for file in written:
        click.echo(file)


if __name__ == "__main__":
    main()
