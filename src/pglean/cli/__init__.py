"""The command line: thin. Each command parses, calls the API, and renders; errors end here, with their exit status."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

import click

from pglean.cli.advise import advise_command
from pglean.cli.bloat import bloat_command
from pglean.cli.check import check_command
from pglean.cli.demo import demo_command
from pglean.cli.display import console
from pglean.cli.reindex import reindex_command
from pglean.cli.repack import repack_command
from pglean.cli.runs import cleanup_command, log_command, status_command, uninstall_command
from pglean.cli.steer import abort_command, pause_command, resume_command, swap_command
from pglean.cli.streams import steady_streams
from pglean.errors import Interrupted, PgleanError, UsageError
from pglean.report import error_text
from pglean.server import translate
from pglean.version import __version__


@click.group(context_settings={"help_option_names": ["-?", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="pglean")
def pglean() -> None:
    """Online table maintenance for PostgreSQL, with nothing installed on the server."""


for _command in (
    repack_command,
    reindex_command,
    bloat_command,
    advise_command,
    check_command,
    status_command,
    pause_command,
    resume_command,
    swap_command,
    abort_command,
    log_command,
    cleanup_command,
    uninstall_command,
    demo_command,
):
    pglean.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    # What was read in stays to the end. Otherwise garbage would be looked for in all of it, several times at exit: that
    # took a quarter as long as reading it in.
    gc.freeze()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    with steady_streams() as out:
        status = _run(arguments)
        out.flush()
        if out.error is not None:
            _tell(PgleanError(f"could not write to standard output: {out.error}"))
            status = status or PgleanError.exit_status
        return status


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = pglean.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.Abort:
        return Interrupted.exit_status
    except click.ClickException as error:
        error.show()
        return UsageError.exit_status
    except KeyboardInterrupt:
        console(stderr=True).print("pglean: interrupted")
        return Interrupted.exit_status
    except Exception as error:
        told = error if isinstance(error, PgleanError) else translate(error)
        _tell(told)
        return told.exit_status


def _tell(error: PgleanError) -> None:
    console(stderr=True).print(error_text(error), soft_wrap=True)
