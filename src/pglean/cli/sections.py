"""Options in sections with a title, for a command that has many; long ones may be abbreviated, as getopt_long does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

#: Where options stand that name no section.
_OTHERS = "Other options"


class _Option(click.Option):
    """An option that knows its section."""

    def __init__(self, *arguments: Any, section: str, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.section = section


class Section:
    """A title under which `--help` lists the options made by `option`, in their order."""

    def __init__(self, title: str) -> None:
        self._title = title

    def option(self, *names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """As `click.option`."""
        return click.option(*names, cls=_Option, section=self._title, **attributes)


class SectionedCommand(click.Command):
    """A command whose options come in sections."""

    #: Long options, without their dashes, that an abbreviation means rather than the others.
    first_meant: frozenset[str] = frozenset()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Sections in the order of their first options, what has none at the end."""
        sections: dict[str, list[tuple[str, str]]] = {}
        others: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                title = parameter.section if isinstance(parameter, _Option) else None
                (others if title is None else sections.setdefault(title, [])).append(record)
        for title, records in [*sections.items(), (_OTHERS, others)]:
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """With each abbreviation of a long option written out; raises `click.UsageError` where it fits several."""
        known = {name for parameter in self.get_params(ctx) for name in parameter.opts if name.startswith("--")}

        def whole(argument: str) -> str:
            name, equals, value = argument.partition("=")
            fitting = sorted(option for option in known if option.startswith(name))
            if len(name) < len("--x") or not name.startswith("--") or name in known or not fitting:
                return argument
            # What meant one option only before there were others must go on meaning it.
            older = [option for option in fitting if option.removeprefix("--") in self.first_meant]
            if len(fitting) > 1 and len(older) != 1:
                raise click.UsageError(f"option {name} is ambiguous: {', '.join(fitting)}", ctx)
            return f"{(fitting if len(fitting) == 1 else older)[0]}{equals}{value}"

        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*map(whole, args[:end]), *args[end:]])
