"""The command line: thin. Each command parses, calls the API, and renders; errors end here, with their exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich.console import Console

from pglean.cli.demo import demo_command
from pglean.cli.repack import repack_command
from pglean.cli.runs import cleanup_command, status_command, uninstall_command
from pglean.errors import PgleanError, UsageError
from pglean.report import error_text
from pglean.server import translate
from pglean.version import __version__


@click.group(context_settings={"help_option_names": ["-?", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="pglean")
def pglean() -> None:
    """Online table maintenance for PostgreSQL, with nothing installed on the server."""


for _command in (repack_command, status_command, cleanup_command, uninstall_command, demo_command):
    pglean.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    console = Console(stderr=True, highlight=False)
    try:
        status = pglean.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.Abort:
        return 8
    except click.ClickException as error:
        error.show()
        return UsageError.exit_status
    except KeyboardInterrupt:
        console.print("pglean: interrupted")
        return 8
    except Exception as error:
        told = error if isinstance(error, PgleanError) else translate(error)
        console.print(error_text(told), soft_wrap=True)
        return told.exit_status
