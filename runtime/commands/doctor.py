"""`drl-doctor`: what this machine can run, why not the rest, and what would mend it."""

import dataclasses
import json
import sys
from collections.abc import Sequence

import click

from drl.runtime.commands.common import clean_errors, file_size, table
from drl.runtime.diagnosis import BackendCheck, Diagnosis, Library, Processor, diagnose
from drl.runtime.gpu import GpuReport


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print everything as a JSON object.")
@clean_errors
def main(as_json: bool) -> None:
    """Show Python, libraries, the processor, and which kernels and backends work here.

    The exit status is 0 if at least one backend works.
    """
    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(diagnosis), indent=2, ensure_ascii=False))
    else:
        click.echo(_report(diagnosis))
    sys.exit(0 if diagnosis.usable else 1)


def _report(diagnosis: Diagnosis) -> str:
    system = [("python", diagnosis.python, diagnosis.executable), ("system", diagnosis.system, "")]
    sections = [
        ("System", table([*system, *_processor_rows(diagnosis.processor)])),
        ("GPU", _graphics(diagnosis.graphics)),
        ("Libraries", table([_library_row(library) for library in diagnosis.libraries])),
        ("Kernels", _checks((diagnosis.native,))),
        ("Backends", _checks(diagnosis.backends)),
    ]
    return "\n\n".join(
        f"{click.style(title, bold=True)}\n{_indent(body)}" for title, body in sections
    )


def _processor_rows(processor: Processor) -> list[tuple[str, str, str]]:
    cores = f"{processor.cores} core{'' if processor.cores == 1 else 's'}"
    if processor.logical != processor.cores:
        cores += f", {processor.logical} hardware threads"
    if processor.quota:
        cores += f", quota of {processor.quota:g}"
    rows = [
        ("processor", processor.model, " ".join(processor.instruction_sets)),
        ("cores", cores, f"{processor.default_threads} threads by default"),
    ]
    if processor.memory is not None and processor.available_memory is not None:
        free = f"{file_size(processor.available_memory)} available"
        rows.append(("memory", file_size(processor.memory), free))
    return rows


def _graphics(graphics: GpuReport) -> str:
    rows = [
        (gpu.name, f"compute capability {gpu.compute_capability}", file_size(gpu.memory))
        for gpu in graphics.gpus
    ]
    if graphics.driver is not None:
        rows.insert(0, ("driver", f"CUDA {graphics.driver}", ""))
    lines = [table(rows)] if rows else []
    return "\n".join([*lines, graphics.fault] if graphics.fault else lines)


def _library_row(library: Library) -> tuple[str, str, str]:
    return library.name, library.version or "not installed", library.extra


def _checks(checks: Sequence[BackendCheck]) -> str:
    lines = []
    for check in checks:
        mark = (
            click.style("works", fg="green") if check.works else click.style("no   ", fg="yellow")
        )
        lines.append(f"{mark}  {check.name}: {check.detail}")
        if check.remedy:
            lines.append(f"       {check.remedy}")
    return "\n".join(lines)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
