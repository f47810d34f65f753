"""Run the tests that need a server on each PostgreSQL version, and sum up in one line each.

Usage: matrix.py [--together] [MAJOR ...]; without versions all that servers.py knows.  With --together
in one go, in which tests that are marked so run on one of the servers only, as in `make test`.

A version whose server cannot be brought counts as failed: what was not tested is not known to
work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SERVERS: Final = ROOT / ".servers"
TESTS: Final = ("tests/integration", "tests/isolation", "tests/faults")
NO_TESTS_COLLECTED: Final = 5


def bring(majors: list[str]) -> tuple[dict[str, str], bool]:
    """The directory of programs of each version, and whether none is missing."""
    command = [sys.executable, str(ROOT / "scripts" / "servers.py"), "--into", str(SERVERS)]
    result = subprocess.run([*command, *majors], stdout=subprocess.PIPE, text=True, check=False)
    found = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    return found, result.returncode == 0


def run_tests(bindir: str) -> tuple[bool, str]:
    """Run the tests on one server; whether they passed, and the line that pytest ends with."""
    tests = [path for path in TESTS if (ROOT / path).is_dir()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "3",
        "-m",
        "not slow",
        "--tb=short",
        *tests,
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PGLEAN_TEST_SERVERS": bindir},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode in {0, NO_TESTS_COLLECTED}, last.strip("= ")


def main() -> int:
    """Bring, run, sum up."""
    arguments = sys.argv[1:]
    together = "--together" in arguments
    servers, complete = bring([argument for argument in arguments if argument != "--together"])
    if together:
        servers = {" and ".join(servers): os.pathsep.join(servers.values())}
    passed = bool(servers) and complete
    summary = []
    for major, bindir in servers.items():
        print(f"\n---- PostgreSQL {major} ({bindir})", flush=True)
        start = time.monotonic()
        good, last = run_tests(bindir)
        passed = passed and good
        verdict = "ok    " if good else "FAILED"
        summary.append(f"PostgreSQL {major}  {verdict}  {last or 'no output'}")
        print(f"---- PostgreSQL {major} took {time.monotonic() - start:.0f} s", flush=True)
    print("\n" + "\n".join(summary), flush=True)
    if not complete:
        print("Not every server could be brought, see above.", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
