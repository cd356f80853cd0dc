"""Help screens that list a command's options in sections."""

from typing import Any

import click

# Columns for names, in all sections; the help of a longer name begins on the next line.
_NAMES = 30


class SectionedOption(click.Option):
    """An option that knows the section of the help screen it is listed in."""

    def __init__(self, *names: Any, section: str, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose options are listed by section, the sections in their first options' order.

    Options without a section, such as `--help`, are listed in the last one.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                last = next(reversed(sections), "Options")
                title = getattr(parameter, "section", last)
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                (name, text), *others = records
                formatter.write_dl([(name.ljust(_NAMES), text), *others], col_max=_NAMES)
