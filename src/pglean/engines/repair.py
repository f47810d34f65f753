"""Invalid indexes of one table, rebuilt or dropped before it is rewritten.

What a failed REINDEX CONCURRENTLY has left is dropped whatever was asked for, since what it was made of is there. What
another session builds just now is left alone; the rewrite then refuses the table.
"""

from __future__ import annotations

from dataclasses import replace

from pglean.engines import candidate, reindex
from pglean.engines.candidate import Candidate, Relation
from pglean.engines.plan import ReindexPlan, Work
from pglean.errors import Finding, PgleanError, Refused
from pglean.locks import patiently
from pglean.options import InvalidIndexes, Options
from pglean.patience import Patience, Policy
from pglean.progress import Callback
from pglean.server import Server
from pglean.table import quote_name

#: Code of the findings about invalid indexes.
INVALID_INDEX = "invalid-index"


def finding(index: Candidate, how: InvalidIndexes, table: str) -> Finding:
    """What preflight says of an invalid index: refused, or what is done about it first."""
    name = index.qualified_name
    message = f"index {name} is invalid"
    if how is InvalidIndexes.REFUSE or index.builder is not None:
        return Finding(INVALID_INDEX, message, index.story, _hint(index, table))
    if index.leftover:
        return Finding(INVALID_INDEX, message, f"{index.story} It is dropped first.", fatal=False)
    if how is InvalidIndexes.REBUILD and index.exclusion:
        return Finding(
            INVALID_INDEX,
            message,
            "It backs an exclusion constraint: the server cannot build such an index while the table is written.",
            f"In a quiet moment, for writers wait meanwhile: REINDEX INDEX {name};",
        )
    if how is InvalidIndexes.DROP and (needed := _needed_by(index)):
        return Finding(
            INVALID_INDEX,
            message,
            f"It cannot be dropped, for it {needed}.",
            "Have it rebuilt: --invalid-indexes rebuild.",
        )
    return Finding(
        INVALID_INDEX,
        message,
        "It is rebuilt first (--invalid-indexes rebuild)."
        if how is InvalidIndexes.REBUILD
        else "It is dropped first (--invalid-indexes drop).",
        fatal=False,
    )


def _hint(index: Candidate, table: str) -> str:
    name = index.qualified_name
    if index.builder is not None:
        return "Wait until it is done."
    if index.leftover:
        return (
            f"--invalid-indexes rebuild removes it, as does `pglean reindex -t '{table}'`; by hand:"
            f" DROP INDEX CONCURRENTLY {name};"
        )
    if needed := _needed_by(index):
        return f"--invalid-indexes rebuild has it rebuilt (it {needed}); by hand: REINDEX INDEX CONCURRENTLY {name};"
    return (
        "--invalid-indexes rebuild, or drop, has that done first; by hand:"
        f" DROP INDEX CONCURRENTLY or REINDEX INDEX CONCURRENTLY {name};"
    )


def _needed_by(index: Candidate) -> str:
    if index.constraint is not None:
        return f"backs constraint {quote_name(index.constraint)}"
    return "" if index.parent is None else f"is a part of index {index.parent}"


def repair(server: Server, oid: int, options: Options, on_progress: Callback | None = None) -> None:
    """Rebuild or drop, as the options say, all invalid indexes of the table that nobody is at work on.

    Locks: those of `reindex.run`, no other. Raises `Refused` where an index cannot be rebuilt or dropped (the table is
    untouched, nothing is left), `LockNotObtained`, `Interrupted`.
    """
    with server.connect("preflight") as conn:
        found = candidate.relations(conn, [oid])
        if oid not in found:
            return
        relation = found[oid]
        patience = Patience(server, Policy.of(options), lambda _: None)
        indexes = patiently(server, conn, oid, patience, lambda: candidate.candidates(conn, oid))
    invalid = [index for index in indexes if not index.valid and index.builder is None]
    if not invalid:
        return
    findings = [finding(index, options.invalid_indexes, relation.qualified_name) for index in invalid]
    if refusals := [one for one in findings if one.fatal]:
        raise Refused(relation.qualified_name, refusals)
    rebuild = options.invalid_indexes is InvalidIndexes.REBUILD
    rebuilds = tuple(index for index in invalid if rebuild and not index.leftover)
    removals = tuple(index for index in invalid if index not in rebuilds)
    # They stay where they are; the rewrite moves them.
    here = replace(options, tablespace=None, move_indexes=False)
    result = reindex.run(server, ReindexPlan((Work(relation, removals, rebuilds),), here, {}, ()), on_progress)
    if result.ended_by is not None:
        raise result.ended_by
    if result.failures:
        raise _error(relation, result.failures, options.invalid_indexes)


def _error(relation: Relation, failures: dict[str, PgleanError], how: InvalidIndexes) -> PgleanError:
    """The first that is no refusal by its nature (no lock in time, say), or all of them as one."""
    for error in failures.values():
        if type(error) is not PgleanError:
            return error
    other = "Or have invalid indexes dropped: --invalid-indexes drop." if how is InvalidIndexes.REBUILD else None
    findings = [
        Finding(
            INVALID_INDEX,
            error.message,
            error.detail,
            " ".join(part for part in (error.hint, other) if part) or None,
        )
        for error in failures.values()
    ]
    return Refused(relation.qualified_name, findings)
