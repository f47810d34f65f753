"""What the role of a session may do: whether it can exchange files at all, and if not, what it can do instead."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from pglean.errors import Finding, Refused
from pglean.session import Connection, scalar
from pglean.sql import query

#: Roles that services give to their customers in place of a superuser, and who does so.
_SERVICES: Final = {
    "alloydbsuperuser": "AlloyDB",
    "azure_pg_admin": "Azure Database for PostgreSQL",
    "cloudsqlsuperuser": "Google Cloud SQL",
    "rds_superuser": "Amazon RDS",
}
#: Code of the findings about rights.
CODE: Final = "rights"
#: Since when memberships can be without SET ROLE, tables be maintained by grant, and the server repack online.
_SET_OPTION, _MAINTAIN, _NATIVE = 160000, 170000, 190000


@dataclass(frozen=True, slots=True)
class Session:
    """Who logged in, and as whom he works."""

    role: str
    login_role: str
    is_superuser: bool
    login_is_superuser: bool
    #: The role, as SQL takes it.
    role_sql: str
    #: A superuser that whoever logged in may work as; None where there is none.
    may_become: str | None
    #: The role that a managed service gives out in place of a superuser, where he is a member of it.
    service_role: str | None
    #: What takes back that our role is another than the one that logged in; None where nothing in the catalog says so.
    role_reset: str | None


@dataclass(frozen=True, slots=True)
class OnTable:
    """What a role that is no superuser may do to a table by itself."""

    #: Table and owner, as SQL takes them.
    name_sql: str
    owner_sql: str
    #: Rebuild its indexes, vacuum it, and have the server repack it.
    maintains: bool
    #: As the owner of the database: vacuum it.
    owns_database: bool
    #: Server's version number.
    version: int
    #: What REPACK (CONCURRENTLY) lacks, one phrase each; None before PostgreSQL 19.
    native_lacks: tuple[str, ...] | None


def of_session(conn: Connection) -> Session:
    """The rights of this session's roles. Takes no lock."""
    row = conn.execute(
        query("rights.session"),
        {"set": "SET" if conn.info.server_version >= _SET_OPTION else "MEMBER", "services": list(_SERVICES)},
    ).fetchone()
    assert row is not None
    role, login_role, is_superuser, login_is_superuser, role_sql, may_become, service_role = row
    reset = scalar(conn, query("rights.role_setting")) if role != login_role else None
    return Session(role, login_role, is_superuser, login_is_superuser, role_sql, may_become, service_role, reset)


def on_table(conn: Connection, oid: int) -> OnTable | None:
    """What our role may do to the table; None where that is gone. Takes no lock."""
    version = conn.info.server_version
    maintain = "MAINTAIN" if version >= _MAINTAIN else None
    row = conn.execute(query("rights.table"), {"oid": oid, "maintain": maintain}).fetchone()
    if row is None:
        return None
    name, owner, maintains, owns_database, has_identity = row
    lacks = None
    if version >= _NATIVE:
        logged, slots = conn.execute(query("rights.repack_settings")).fetchone() or (True, True)
        needs = (
            (has_identity, "a replica identity that is an index (by default the primary key) of a logged table"),
            (logged, "wal_level = replica"),
            (slots, "max_repack_replication_slots above 0"),
        )
        lacks = tuple(phrase for there, phrase in needs if not there)
    return OnTable(name, owner, maintains, owns_database, version, lacks)


def require_superuser(conn: Connection) -> None:
    """Raise `Refused` where our role is none: what stands in the schema pglean is for superusers alone."""
    session = of_session(conn)
    for finding in findings(session, None):
        raise Refused(
            "the schema pglean",
            [
                Finding(
                    CODE,
                    f"permission denied for schema pglean: {finding.message}",
                    "Runs are recorded in that schema, and its helpers work with a superuser's rights:"
                    " only superusers may use it.",
                    finding.hint,
                )
            ],
        )


def of_database(conn: Connection) -> Iterator[Finding]:
    """That our role cannot exchange files, where it cannot, and what it can do to tables that are its own. No lock."""
    session = of_session(conn)
    for finding in findings(session, None):
        hint = finding.hint
        if not session.login_is_superuser and session.may_become is None:
            maintains = ", or has MAINTAIN on," if conn.info.server_version >= _MAINTAIN else ""
            instead = (
                f'Of tables that "{session.role}" owns{maintains} it may rebuild the indexes online,'
                " `pglean reindex -t TABLE`, and `VACUUM TABLE;`."
            )
            hint = " ".join(filter(None, (hint, instead)))
        yield replace(finding, hint=hint)


def findings(session: Session, on: OnTable | None) -> Iterator[Finding]:
    """That the role cannot exchange files, where it cannot, and what it can do to the table instead; `on`: to which."""
    if session.is_superuser:
        return
    detail = "Exchanging the files of a table under its OID writes to pg_class, which only a superuser may."
    message = f'role "{session.role}" is not a superuser'
    if session.role != session.login_role:
        message = f'the session of "{session.login_role}" works as role "{session.role}", which is not a superuser'
        detail = f"That role is set for the database or for who logs in, or by an option of the connection. {detail}"
    if session.service_role is not None:
        detail += (
            f' "{session.service_role}" is none either: {_SERVICES[session.service_role]} keeps superusers to itself.'
        )
    hints = [_way_in(session)]
    if on is not None and not session.login_is_superuser and session.may_become is None:
        hints += _instead(session, on)
    yield Finding(CODE, message, detail, " ".join(filter(None, hints)) or None)


def _way_in(session: Session) -> str:
    """How to become a superuser; empty where the service keeps everybody from it."""
    if session.login_is_superuser:
        back = f", or take the setting back: {session.role_reset}" if session.role_reset else "."
        return f"Connect with PGOPTIONS={shlex.quote('-c role=none')} as a superuser{back}"
    if session.may_become is not None:
        return (
            f"Connect with PGOPTIONS={shlex.quote(_role_option(session.may_become))}:"
            f' "{session.login_role}" may work as superuser "{session.may_become}".'
        )
    return "" if session.service_role else "Connect as a superuser (-U), e.g. the role that initdb created."


def _role_option(role: str) -> str:
    # The server splits the options at blanks and takes a backslash as an escape.
    escaped = "".join("\\" + character if character.isspace() or character == "\\" else character for character in role)
    return f"-c role={escaped}"


def _instead(session: Session, on: OnTable) -> Iterator[str]:
    """What is possible without a superuser, and what would have to be granted for more."""
    table, native = on.name_sql, on.native_lacks == ()
    online = [f"`VACUUM {table};` (room for new rows)"]
    if on.maintains:
        online.insert(0, f"`pglean reindex -t {shlex.quote(table)}` (its indexes)")
        if native:
            online.insert(0, f"`REPACK (CONCURRENTLY) {table};` (the server's own rewrite)")
    if on.maintains or on.owns_database:
        offline = f"`VACUUM FULL {table};`"
        yield f'By itself "{session.role}" may, online: {", ".join(online)}; with the table locked: {offline}.'
    if on.maintains and on.native_lacks:
        yield f"`REPACK (CONCURRENTLY) {table};` would need {' and '.join(on.native_lacks)}."
    if not on.maintains:
        privilege = f"MAINTAIN ON TABLE {table}" if on.version >= _MAINTAIN else on.owner_sql
        uses = ["rebuild its indexes online"]
        if not on.owns_database:
            uses.insert(0, "vacuum it")
        if native:
            uses.append(f"`REPACK (CONCURRENTLY) {table};`")
        yield f"To {' and '.join(uses)} takes `GRANT {privilege} TO {session.role_sql};`."
