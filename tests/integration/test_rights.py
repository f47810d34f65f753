"""Roles that are no superusers: preflight says what they may do by themselves, and how they get further.

What it offers is done, as the role that it was offered to.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.embedded import EmbeddedServer
from pglean.errors import Finding, Refused
from tests.servers import SETTINGS, Database
from tests.support.oracle import assert_nothing_left, name

pytestmark = pytest.mark.in_turn

#: A table whose name has to be quoted for the server and for the shell.
TABLE = 'public."It\'s big"'
EXCHANGE = "Exchanging the files of a table under its OID writes to pg_class, which only a superuser may."
SUPERUSER = "Connect as a superuser (-U), e.g. the role that initdb created."


@pytest.fixture
def role(server: EmbeddedServer) -> Iterator[Callable[[str], str]]:
    """Roles of this test alone, each made when it is first asked for; they go with what they own or were granted."""
    made: list[str] = []

    def make(role: str) -> str:
        with psycopg.connect(server.conninfo(), autocommit=True) as session:
            session.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        made.append(role)
        return role

    yield make
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        for role in made:
            session.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


@pytest.fixture
def db(role: Callable[[str], str], db: Database) -> Database:
    """The database, which is dropped before the roles that own something in it."""
    return db


@pytest.fixture
def table(db: Database) -> Database:
    """With the table, which belongs to the superuser."""
    db.execute(f"CREATE TABLE {TABLE} (id int PRIMARY KEY, v text); INSERT INTO {TABLE} VALUES (1, 'one')")
    return db


def own(db: Database, role: str, relation: str = TABLE) -> None:
    db.execute(f'ALTER TABLE {relation} OWNER TO "{role}"')


def refused(db: Database, role: str, relation: str = TABLE, *, options: str = "") -> Finding:
    """The only finding about the role's rights; nothing else stands in the way."""
    with pglean.connect(psycopg.conninfo.make_conninfo(db.conninfo, user=role, options=options)) as database:
        with pytest.raises(Refused) as caught:
            database.plan(relation)
        with pytest.raises(Refused) as begun:
            database.repack(relation)
    assert begun.value.findings == caught.value.findings
    (finding,) = [finding for finding in caught.value.findings if finding.code == "rights"]
    assert finding.fatal
    assert finding.detail is None or finding.detail.endswith(".")
    assert db.scalar("SELECT to_regnamespace('pglean')") is None
    return finding


def offered(finding: Finding) -> list[str]:
    """What the hint says in backquotes."""
    return re.findall("`(.*?)`", finding.hint or "")


def execute_all(db: Database, role: str, statements: list[str]) -> None:
    """As the role; the commands of ours, which are not for the server, by what they do there."""
    with psycopg.connect(db.conninfo, user=role, autocommit=True) as session:
        for statement in statements:
            own_command = statement.startswith("pglean reindex -t ")
            session.execute(
                name(f"REINDEX TABLE CONCURRENTLY {shlex.split(statement)[-1]}" if own_command else statement)
            )


def online(version: int, *, native: bool = True) -> list[str]:
    """What an owner is offered."""
    quoted = shlex.quote(TABLE)
    commands = [f"pglean reindex -t {quoted}", f"VACUUM {TABLE};", f"VACUUM FULL {TABLE};"]
    return ([f"REPACK (CONCURRENTLY) {TABLE};"] if native and version >= 190000 else []) + commands


def test_owner(table: Database, role: Callable[[str], str]) -> None:
    own(table, role("Table owner"))
    finding = refused(table, "Table owner")
    assert finding.message == 'role "Table owner" is not a superuser'
    assert finding.detail == EXCHANGE
    assert finding.hint
    assert finding.hint.startswith(f'{SUPERUSER} By itself "Table owner" may, online: ')
    assert offered(finding) == online(table.server.version)
    execute_all(table, "Table owner", offered(finding))


def test_member_of_the_owner(table: Database, role: Callable[[str], str]) -> None:
    own(table, role("the owner"))
    role("a member")
    table.execute('GRANT "the owner" TO "a member"')
    finding = refused(table, "a member")
    assert offered(finding) == online(table.server.version)
    execute_all(table, "a member", offered(finding))
    # Whoever does not inherit its rights has to ask for them.
    table.execute(
        'ALTER ROLE "a member" NOINHERIT; REVOKE "the owner" FROM "a member"; GRANT "the owner" TO "a member"'
    )
    grant, *_ = offered(refused(table, "a member"))[-1:]
    assert grant.startswith("GRANT ")


@pytest.mark.min_version(17)
@pytest.mark.parametrize("grant", [f"MAINTAIN ON TABLE {TABLE}", "pg_maintain"])
def test_maintainer(table: Database, role: Callable[[str], str], grant: str) -> None:
    role("janitor")
    table.execute(f"GRANT {grant} TO janitor")
    finding = refused(table, "janitor")
    assert offered(finding) == online(table.server.version)
    execute_all(table, "janitor", offered(finding))


def test_stranger(table: Database, role: Callable[[str], str]) -> None:
    """He is told what he would need; with that, he is offered what an owner is."""
    own(table, role("The Owner"))
    role("A stranger")
    finding = refused(table, "A stranger")
    assert finding.hint
    *native, grant = offered(finding)
    version = table.server.version
    assert native == ([f"REPACK (CONCURRENTLY) {TABLE};"] if version >= 190000 else [])
    privilege = f"MAINTAIN ON TABLE {TABLE}" if version >= 170000 else '"The Owner"'
    assert grant == f'GRANT {privilege} TO "A stranger";'
    start = f"{SUPERUSER} To vacuum it and rebuild its indexes online "
    assert finding.hint.startswith(start)
    table.execute(name(grant))
    finding = refused(table, "A stranger")
    assert offered(finding) == online(version)
    execute_all(table, "A stranger", offered(finding))


def test_owner_of_the_database(table: Database, role: Callable[[str], str]) -> None:
    role("landlord")
    table.execute(f'ALTER DATABASE "{table.name}" OWNER TO landlord')
    finding = refused(table, "landlord")
    *vacuum, grant = [command for command in offered(finding) if not command.startswith("REPACK")]
    assert vacuum == [f"VACUUM {TABLE};", f"VACUUM FULL {TABLE};"]
    assert grant.startswith("GRANT ")
    execute_all(table, "landlord", vacuum)


@pytest.mark.min_version(19)
@pytest.mark.parametrize(
    "change",
    [
        f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL",
        f"ALTER TABLE {TABLE} REPLICA IDENTITY NOTHING",
        f'ALTER TABLE {TABLE} DROP CONSTRAINT "It\'s big_pkey", ADD PRIMARY KEY (id) DEFERRABLE',
        f"ALTER TABLE {TABLE} SET UNLOGGED",
    ],
)
def test_without_what_the_server_needs_to_repack(table: Database, role: Callable[[str], str], change: str) -> None:
    own(table, role("owner 19"))
    table.execute(change)
    finding = refused(table, "owner 19")
    *others, native = offered(finding)
    assert others == online(table.server.version, native=False)
    assert finding.hint
    assert finding.hint.endswith(
        f"`REPACK (CONCURRENTLY) {TABLE};` would need a replica identity that is an index (by default the primary key)"
        " of a logged table."
    )
    with pytest.raises(psycopg.Error):
        execute_all(table, "owner 19", [native])


@pytest.mark.min_version(19)
def test_without_decoding(role: Callable[[str], str], server: EmbeddedServer) -> None:
    settings = {**SETTINGS, "wal_level": "minimal", "max_wal_senders": "0", "max_repack_replication_slots": "0"}
    with EmbeddedServer(server.bindir, settings=settings) as other:
        db = Database(other, "postgres")
        db.execute(f"CREATE ROLE o LOGIN; CREATE TABLE {TABLE} (id int PRIMARY KEY); ALTER TABLE {TABLE} OWNER TO o")
        finding = refused(db, "o")
        assert finding.hint
        assert finding.hint.endswith("would need wal_level = replica and max_repack_replication_slots above 0.")
        db.close()


@pytest.mark.parametrize("superuser", ["postgres", "odd 'superuser\\"])
def test_member_of_a_superuser(table: Database, role: Callable[[str], str], superuser: str) -> None:
    """The rights of a superuser are not inherited: whoever has that role must work as it, which is enough."""
    role("wheel")
    if superuser != "postgres":
        table.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(sql.Identifier(role(superuser))))
    table.execute(sql.SQL("GRANT {} TO wheel").format(sql.Identifier(superuser)))
    finding = refused(table, "wheel")
    assert finding.hint
    hint = re.fullmatch(r'Connect with PGOPTIONS=(.*): "wheel" may (.*)', finding.hint, re.DOTALL)
    assert hint is not None
    options, told = hint.groups()
    assert told == f'work as superuser "{superuser}".'
    # As a shell would read it.
    (options,) = shlex.split(options)
    with pglean.connect(psycopg.conninfo.make_conninfo(table.conninfo, user="wheel", options=options)) as database:
        database.repack(TABLE, verify="full")
    assert_nothing_left(table)
    if table.server.version >= 160000:
        table.execute("DROP SCHEMA pglean CASCADE")
        table.execute(sql.SQL("GRANT {} TO wheel WITH SET FALSE").format(sql.Identifier(superuser)))
        finding = refused(table, "wheel")
        assert finding.hint
        assert "PGOPTIONS" not in finding.hint


def test_inherited_rights_are_not_enough_for_the_schema(table: Database, role: Callable[[str], str]) -> None:
    """What a member of a superuser made there, by a migration for one, would be his and not a superuser's."""
    role("wheel")
    table.execute("GRANT postgres TO wheel")
    with pglean.connect(table.conninfo) as database:
        database.repack(TABLE)
    with pglean.connect(psycopg.conninfo.make_conninfo(table.conninfo, user="wheel")) as database:
        for act in (database.status, database.log, database.cleanup, database.uninstall):
            with pytest.raises(Refused) as caught:
                act()
            assert caught.value.message == ('permission denied for schema pglean: role "wheel" is not a superuser')
            assert caught.value.hint == (
                'Connect with PGOPTIONS=\'-c role=postgres\': "wheel" may work as superuser "postgres".'
            )


def test_login_that_works_as_another_role(table: Database, role: Callable[[str], str]) -> None:
    """Neither of them is a superuser: to take the setting back would not help."""
    own(table, role("worker"))
    role("login")
    table.execute("GRANT worker TO login")
    finding = refused(table, "login", options="-c role=worker")
    assert finding.message == 'the session of "login" works as role "worker", which is not a superuser'
    assert finding.hint
    assert finding.hint.startswith(SUPERUSER)
    assert offered(finding) == online(table.server.version)


@pytest.mark.newest
@pytest.mark.parametrize("service", ["rds_superuser", "cloudsqlsuperuser", "alloydbsuperuser", "azure_pg_admin"])
def test_managed_services(table: Database, role: Callable[[str], str], service: str) -> None:
    """There is no superuser to connect as."""
    own(table, role("tenant"))
    role(service)
    table.execute(f"GRANT {service} TO tenant")
    finding = refused(table, "tenant")
    assert finding.detail
    assert re.fullmatch(
        re.escape(EXCHANGE) + rf' "{service}" is none either: [A-Z][\w ]+ keeps superusers to itself\.', finding.detail
    )
    assert finding.hint
    assert finding.hint.startswith('By itself "tenant" may, online: ')
    assert offered(finding) == online(table.server.version)


@pytest.mark.newest
@pytest.mark.parametrize(
    "relation",
    ["CREATE VIEW r AS SELECT 1", "CREATE SEQUENCE r", "CREATE TABLE r (id int PRIMARY KEY) PARTITION BY RANGE (id)"],
)
def test_what_is_no_table_is_offered_nothing(db: Database, role: Callable[[str], str], relation: str) -> None:
    role("owner of r")
    db.execute(f'{relation}; ALTER TABLE r OWNER TO "owner of r"')
    assert refused(db, "owner of r", "r").hint == SUPERUSER


def test_schema_without_usage(db: Database, role: Callable[[str], str]) -> None:
    role("shut out")
    db.execute("CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int PRIMARY KEY)")
    own(db, "shut out", "hidden.t")
    finding = refused(db, "shut out", "hidden.t")
    assert finding.message == "hidden.t cannot be looked up: permission denied for schema hidden"
    assert finding.hint == 'GRANT USAGE on that schema to "shut out", or connect as a superuser (-U).'
    db.execute('GRANT USAGE ON SCHEMA hidden TO "shut out"')
    assert refused(db, "shut out", "hidden.t").message == 'role "shut out" is not a superuser'
