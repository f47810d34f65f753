"""The walls of the house: who imports whom, who connects, locks, and writes to catalogs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "pglean"

# A module imports only from entries above its own.  "a.*" is the package "a" with all its modules,
# which may import one another; a package that is listed by module has an __init__ without imports.
ORDER = [
    "errors",
    "table",
    "parameters",
    "options",
    "version",
    "result",
    "programs",
    "embedded",
    "sql.*",
    "pausepoint",
    "session",
    "spares",
    "conninfo",
    "server",
    "foreign",
    "catalog",
    "selection",
    "claim",
    "blockers",
    "patience",
    "locks",
    "processors",
    "disk",
    "throttle",
    "progress",
    "guard",
    "horizon",
    "bloat.*",
    "advice.*",
    "engines.candidate",
    "engines.watch",
    "engines.removal",
    "engines.plan",
    "engines.reindex",
    "engines.repair",
    "capture.*",
    "rewrite.phase",
    "rewrite.layout",
    "rewrite.rights",
    "rewrite.order",
    "rewrite.checks",
    "rewrite.schema",
    "rewrite.job",
    "rewrite.plan",
    "rewrite.status",
    "rewrite.courtesy",
    "rewrite.run",
    "rewrite.flush",
    "rewrite.shadow",
    "rewrite.indexes",
    "rewrite.baseline",
    "rewrite.copy",
    "rewrite.images",
    "rewrite.refresh",
    "rewrite.catchup",
    "rewrite.adopt",
    "rewrite.verify",
    "rewrite.snapshots",
    "rewrite.ready",
    "rewrite.swap",
    "rewrite.cleanup",
    "rewrite.ending",
    "rewrite.preflight",
    "rewrite.steering",
    "rewrite.watch",
    "rewrite.pipeline",
    "rewrite",
    "api",
    "__init__",
    "report",
    "demo.*",
    "cli.*",
    "__main__",
]

PURE = [
    "errors",
    "table",
    "parameters",
    "options",
    "result",
    "bloat.figures",
    "bloat.estimate",
    "bloat.finding",
    "bloat.reckoning",
    "advice.figures",
    "advice.cost",
    "bloat.verdict",
    "rewrite.phase",
]

CATALOG_WRITE = re.compile(r"\b(?:UPDATE|DELETE\s+FROM|INSERT\s+INTO)\s+(?:ONLY\s+)?pg_catalog\.pg_")
LOCK_TABLE = re.compile(r"\bLOCK\s+TABLE\b|\bCOMMENT\s+ON\b")

# Imports a module as if pglean/__init__.py, which exports everything, were empty, and with the
# driver out of reach.
IMPORT_WITHOUT_DRIVER = """\
import importlib, importlib.abc, sys, types

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("psycopg", "psycopg_pool"):
            raise ImportError(f"{name} is out of bounds here")

sys.meta_path.insert(0, Blocker())
package = types.ModuleType("pglean")
package.__path__ = [sys.argv[1]]
sys.modules["pglean"] = package
importlib.import_module("pglean." + sys.argv[2])
"""


def module_name(path: Path) -> str:
    """The name below ``pglean`` that ORDER knows a file by; that of the package is __init__."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def rank(module: str) -> int | None:
    """The place of a module in ORDER."""
    for place, entry in enumerate(ORDER):
        package = entry.removesuffix(".*")
        if module == package or (entry != package and module.startswith(package + ".")):
            return place
    return None


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported(module: str) -> Iterator[str]:
    """The modules of this package that a module imports, wherever in it, types included."""
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, _, rest = alias.name.partition(".")
                if head == "pglean":
                    yield rest or "__init__"
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            if base is None:
                continue
            for alias in node.names:
                # "from package import name" means a module of that name where there is one.
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else base or "__init__"


def absolute(module: str, node: ast.ImportFrom) -> str | None:
    """What follows "pglean." in an import's source; None if it is no module of ours."""
    if node.level == 0:
        head, _, rest = (node.module or "").partition(".")
        return rest if head == "pglean" else None
    is_package = MODULES[module].name == "__init__.py"
    path = [] if module == "__init__" else module.split(".")
    climb = node.level - 1 if is_package else node.level
    path = path[: len(path) - climb]
    return ".".join([*path, *(node.module or "").split(".")]).rstrip(".")


def docstrings(tree: ast.Module) -> set[int]:
    """The identities of the nodes that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def texts(module: str) -> Iterator[str]:
    """All strings of a module that it could send to a server."""
    tree = parse(module)
    prose = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def connects(module: str) -> bool:
    """Whether a module opens connections by the driver."""
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("psycopg"):
            if any(alias.name == "connect" for alias in node.names):
                return True
        elif isinstance(node, ast.Attribute) and node.attr == "connect":
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if name in {"psycopg", "Connection", "AsyncConnection"}:
                return True
    return False


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    own = rank(module)
    targets = set(imported(module))
    if own is None and MODULES[module].name == "__init__.py":
        assert not targets, f"the package {module} is not in ORDER, so it imports nothing of ours"
        return
    assert own is not None, f"{module} has no place in ORDER"
    for target in sorted(targets):
        if target in MODULES and MODULES[target].name == "__init__.py" and rank(target) is None:
            continue
        place = rank(target)
        assert place is not None, f"{module} imports {target}, which has no place in ORDER"
        same_package = place == own and ORDER[own].endswith(".*")
        assert place < own or same_package, f"{module} imports {target}, which is not above it"


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_do_without_the_driver(module: str) -> None:
    command = [sys.executable, "-c", IMPORT_WITHOUT_DRIVER, str(SOURCE), module]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", MODULES)
def test_only_the_server_module_connects(module: str) -> None:
    # The demo's own traffic plays the application, which is not pglean.
    if module.partition(".")[0] in {"server", "demo"}:
        return
    assert not connects(module)


@pytest.mark.parametrize("module", MODULES)
def test_only_swap_writes_to_catalogs(module: str) -> None:
    if module == "rewrite.swap" or module.partition(".")[0] == "sql":
        return
    assert not [text for text in texts(module) if CATALOG_WRITE.search(text)]


@pytest.mark.parametrize("module", MODULES)
def test_only_the_locks_module_locks_tables(module: str) -> None:
    if module == "locks":
        return
    assert not [text for text in texts(module) if LOCK_TABLE.search(text)]


def test_sql_files_lock_no_tables() -> None:
    for path in SOURCE.rglob("*.sql"):
        statements = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
        assert not LOCK_TABLE.search(statements), path.name
