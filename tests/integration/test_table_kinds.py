"""All kinds of ordinary tables: whatever a table can be or have, it has it afterwards, and its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.servers import Database
from tests.support.churn import churn, write
from tests.support.oracle import Change, repack

pytestmark = pytest.mark.in_turn


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of table: the statements that make one of it, named `table`, with rows."""

    ddl: str
    table: str = "t"
    #: The changes of the second run; None for what any table can bear.
    during: Sequence[Change] | None = None


#: An expression in g: about 13 kB that do not compress well.
BIG = "(SELECT string_agg(md5(g * 1000 + i || ''), '') FROM generate_series(1, 400) i)"

TOAST = {
    "compressed inline": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text);"
        "INSERT INTO t SELECT g, repeat('compressible ', 300) || g FROM generate_series(1, 60) g"
    ),
    "external and compressed": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text, w text);"
        f"INSERT INTO t SELECT g, {BIG}, repeat(md5(g || ''), 3000) FROM generate_series(1, 60) g"
    ),
    "every storage": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, p text, e text, m text, x text, b bytea);"
        "ALTER TABLE t ALTER p SET STORAGE PLAIN, ALTER e SET STORAGE EXTERNAL, ALTER m SET STORAGE MAIN,"
        "  ALTER x SET STORAGE EXTENDED, ALTER b SET STORAGE EXTERNAL;"
        "INSERT INTO t SELECT g, repeat('p', 900), repeat('e', 3000), repeat('m', 9000), repeat('x', 9000), "
        "decode(repeat('00', 9000), 'hex')"
        "  FROM generate_series(1, 30) g"
    ),
    "storage changed after the rows": Kind(
        f"CREATE TABLE t (id int PRIMARY KEY, v text, w text); "
        f"INSERT INTO t SELECT g, {BIG}, {BIG} FROM generate_series(1, 30) g;"
        "ALTER TABLE t ALTER v SET STORAGE EXTERNAL; ALTER TABLE t ALTER w SET STORAGE MAIN"
    ),
    "pglz": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text COMPRESSION pglz);"
        "INSERT INTO t SELECT g, repeat(md5(g || ''), 300) FROM generate_series(1, 30) g"
    ),
    "target and options": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (toast_tuple_target = 256, fillfactor = 60, "
        "parallel_workers = 3,"
        "  autovacuum_vacuum_scale_factor = 0.3, toast.autovacuum_vacuum_threshold = 77, toast.vacuum_truncate = off);"
        f"INSERT INTO t SELECT g, {BIG} FROM generate_series(1, 30) g"
    ),
    "nothing in it": Kind("CREATE TABLE t (id int PRIMARY KEY, v text) WITH (toast.autovacuum_enabled = off)"),
    "none for there is no long column": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v varchar(20)); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 30) g"
    ),
    "none for all columns were made plain": Kind(
        "CREATE TABLE s (id int, v text); ALTER TABLE s ALTER v SET STORAGE PLAIN;"
        "CREATE TABLE t (LIKE s INCLUDING STORAGE, PRIMARY KEY (id)); "
        "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 30) g"
    ),
    "left by columns made plain": Kind(
        f"CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, {BIG} FROM generate_series(1, 30) g;"
        "UPDATE t SET v = 'short'; ALTER TABLE t ALTER v SET STORAGE PLAIN"
    ),
    "array, json and composite": Kind(
        "CREATE TYPE pair AS (a text, b text);"
        "CREATE TABLE t (id int PRIMARY KEY, a text[], j json, b jsonb, p pair, x bytea);"
        f"INSERT INTO t SELECT g, ARRAY[{BIG}, 'x'], json_build_object('k', {BIG}), jsonb_build_object('k', {BIG}),"
        f"  ROW({BIG}, 'y')::pair, {BIG}::bytea FROM generate_series(1, 30) g"
    ),
}

DROPPED = {
    "first": Kind(
        "CREATE TABLE t (gone text, id int PRIMARY KEY, v text);"
        "INSERT INTO t SELECT 'gone', g, 'v' FROM generate_series(1, 60) g; ALTER TABLE t DROP gone"
    ),
    "middle": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, gone int8, v text);"
        "INSERT INTO t SELECT g, 1, 'v' FROM generate_series(1, 60) g; ALTER TABLE t DROP gone"
    ),
    "last": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text, gone bool);"
        "INSERT INTO t SELECT g, 'v', true FROM generate_series(1, 60) g; ALTER TABLE t DROP gone"
    ),
    "several, with their types": Kind(
        "CREATE TYPE mood AS ENUM ('a'); CREATE DOMAIN d AS int;"
        "CREATE TABLE t (a mood, b d, id int PRIMARY KEY, c point, v text, e int[]);"
        "INSERT INTO t SELECT 'a', 1, g, '(1,2)', 'v', '{1}' FROM generate_series(1, 60) g;"
        "ALTER TABLE t DROP a, DROP b, DROP c, DROP e; DROP TYPE mood; DROP DOMAIN d"
    ),
    "leaving the TOAST table": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, gone text, v int) WITH (toast.autovacuum_vacuum_threshold = 123);"
        f"INSERT INTO t SELECT g, {BIG}, g FROM generate_series(1, 30) g; ALTER TABLE t DROP gone"
    ),
    "gone with the TOAST table": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, gone text, v int);"
        f"INSERT INTO t SELECT g, {BIG}, g FROM generate_series(1, 30) g; ALTER TABLE t DROP gone; VACUUM FULL t",
    ),
    "with a default for the rows before": Kind(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT g FROM generate_series(1, 60) g;"
        "ALTER TABLE t ADD gone int DEFAULT 5; ALTER TABLE t ADD v text DEFAULT 'there'; ALTER TABLE t DROP gone"
    ),
    "and added again": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 60) g;"
        "ALTER TABLE t DROP v; ALTER TABLE t ADD v int; ALTER TABLE t DROP v; ALTER TABLE t ADD v text DEFAULT 'new'"
    ),
}

COLUMNS = {
    "fast default": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g;"
        "ALTER TABLE t ADD a int NOT NULL DEFAULT 7, ADD b text DEFAULT repeat('long ', 1000), ADD c "
        "timestamptz DEFAULT '2020-01-01';"
        "INSERT INTO t SELECT g, 'w' FROM generate_series(61, 90) g; "
        "ALTER TABLE t ALTER a DROP DEFAULT, ALTER b SET DEFAULT 'short'"
    ),
    "nulls": Kind(
        "CREATE TABLE t (a int, id int PRIMARY KEY, b text, c int[]);"
        "INSERT INTO t SELECT nullif(g % 2, 0), g, nullif('x', 'x'), CASE WHEN g % 3 = 0 THEN '{}'::int[] END "
        "FROM generate_series(1, 60) g"
    ),
    "key alone": Kind("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 60)"),
    "empty table": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text)", during=("INSERT INTO t SELECT generate_series(1, 60)",)
    ),
    "generated and stored": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED, c text "
        "GENERATED ALWAYS AS ('c' || a) STORED);"
        "INSERT INTO t (id, a) SELECT g, g * 3 FROM generate_series(1, 60) g"
    ),
    "key generated and stored": Kind(
        "CREATE TABLE t (a int NOT NULL, k int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY, v text);"
        "INSERT INTO t (a, v) SELECT g, 'v' FROM generate_series(1, 60) g"
    ),
    "generated and virtual": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL, v text);"
        "INSERT INTO t (id, a, v) SELECT g, g * 3, 'v' FROM generate_series(1, 60) g"
    ),
    "generated and virtual, the only long one": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, c text GENERATED ALWAYS AS ('c' || id) VIRTUAL, a int);"
        "INSERT INTO t (id, a) SELECT g, g * 3 FROM generate_series(1, 60) g"
    ),
    "identity always": Kind(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5) PRIMARY KEY, v text);"
        "INSERT INTO t (v) SELECT 'v' FROM generate_series(1, 60)"
    ),
    "identity by default": Kind(
        "CREATE TABLE t (id int8 GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text);"
        "INSERT INTO t (v) SELECT 'v' FROM generate_series(1, 60)"
    ),
    "serial": Kind(
        "CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) SELECT 'v' FROM generate_series(1, 60)"
    ),
    "checks and defaults": Kind(
        "CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0); CREATE DOMAIN word AS text NOT NULL DEFAULT 'w';"
        "CREATE TABLE t (id int PRIMARY KEY DEFAULT 0, e even, w word, v text NOT NULL DEFAULT 'v' CHECK (v "
        "<> ''), CHECK (id < 1000) NOT VALID);"
        "INSERT INTO t (id, e) SELECT g, g * 2 FROM generate_series(1, 60) g"
    ),
    "checks that its rows do not meet": Kind(
        "CREATE DOMAIN small AS int; CREATE TABLE t (id int PRIMARY KEY, s small); "
        "INSERT INTO t SELECT g, g FROM generate_series(1, 60) g;"
        "ALTER DOMAIN small ADD CHECK (VALUE < 10) NOT VALID; ALTER TABLE t ADD CHECK (id < 10) NOT VALID",
        during=("UPDATE t SET id = id WHERE id < 5", "DELETE FROM t WHERE id > 50"),
    ),
    "collations": Kind(
        'CREATE TABLE t (id text COLLATE "C" PRIMARY KEY, v text COLLATE "POSIX", a text[] COLLATE "C");'
        "INSERT INTO t SELECT 'k' || g, 'v', '{a}' FROM generate_series(1, 60) g"
    ),
    "many columns": Kind(
        "DO $$ BEGIN EXECUTE (SELECT 'CREATE TABLE t (id int PRIMARY KEY, ' || string_agg(format('c%s int', "
        "g), ', ') || ')'"
        " FROM generate_series(1, 1000) g); END $$; INSERT INTO t SELECT g, g, g FROM generate_series(1, 20) g"
    ),
}

RELATIONS = {
    "partition": Kind(
        "CREATE TABLE p (id int, d date, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d); "
        "CREATE INDEX ON p (v); CREATE INDEX ON p ((lower(v)));"
        "CREATE TABLE t PARTITION OF p FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');"
        "CREATE TABLE u PARTITION OF p DEFAULT;"
        "INSERT INTO p SELECT g, date '2020-06-01' + g, 'v' || g FROM generate_series(1, 400) g",
        during=(
            "UPDATE p SET d = d + 365 WHERE id % 3 = 0",
            "UPDATE p SET d = d - 365 WHERE id % 2 = 0",
            "DELETE FROM p WHERE id % 5 = 0",
        ),
    ),
    "partition with columns in another order": Kind(
        "CREATE TABLE p (id int PRIMARY KEY, v text, n int) PARTITION BY LIST (id);"
        "CREATE TABLE t (gone int, n int, v text, id int NOT NULL); ALTER TABLE t DROP gone; "
        "ALTER TABLE p ATTACH PARTITION t DEFAULT;"
        "INSERT INTO p SELECT g, 'v', g FROM generate_series(1, 60) g"
    ),
    "partition of a partition": Kind(
        "CREATE TABLE p (id int, v text, PRIMARY KEY (id)) PARTITION BY HASH (id);"
        "CREATE TABLE q PARTITION OF p FOR VALUES WITH (MODULUS 1, REMAINDER 0) PARTITION BY RANGE (id);"
        "CREATE TABLE t PARTITION OF q DEFAULT; CREATE INDEX ON p USING hash (v); "
        "INSERT INTO p SELECT g, 'v' FROM generate_series(1, 60) g"
    ),
    "partition referenced by a foreign key": Kind(
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE t PARTITION OF p DEFAULT;"
        "INSERT INTO p SELECT g, 'v' FROM generate_series(1, 60) g;"
        "CREATE TABLE r (id int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE); "
        "INSERT INTO r SELECT generate_series(1, 60)",
        during=("DELETE FROM p WHERE id < 5", "UPDATE p SET id = id + 100 WHERE id < 10", "UPDATE p SET v = 'w'"),
    ),
    "partition with a trigger of the whole": Kind(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v || ''!''; RETURN NEW; END';"
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE t PARTITION OF p DEFAULT;"
        "CREATE TRIGGER x BEFORE UPDATE ON p FOR EACH ROW EXECUTE FUNCTION f(); "
        "INSERT INTO p SELECT g, 'v' FROM generate_series(1, 60) g"
    ),
    "inheritance child": Kind(
        "CREATE TABLE p (id int PRIMARY KEY, v text CHECK (v <> '')); "
        "CREATE TABLE t (n int, PRIMARY KEY (id)) INHERITS (p);"
        "INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 60) g"
    ),
    "inheritance parent": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE c (n int) INHERITS (t);"
        "INSERT INTO t SELECT g, 'own' FROM generate_series(1, 60) g; "
        "INSERT INTO c SELECT g, 'child', g FROM generate_series(1, 60) g"
    ),
    "typed table": Kind(
        "CREATE TYPE shape AS (id int, v text); CREATE TABLE t OF shape (PRIMARY KEY (id)); "
        "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g"
    ),
    "view and materialized view over it": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g;"
        "CREATE VIEW w AS SELECT * FROM t WHERE id > 3; "
        "CREATE MATERIALIZED VIEW m AS SELECT t, count(*) FROM t GROUP BY t"
    ),
    "its row type used elsewhere": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g;"
        "CREATE FUNCTION f(t) RETURNS text LANGUAGE sql AS 'SELECT $1.v'; CREATE TABLE u (a t[], b t); "
        "INSERT INTO u SELECT array_agg(t), (1, 'x')::t FROM t"
    ),
}

ATTACHED = {
    "comments, grants, extended statistics, publications and options": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int) WITH (fillfactor = 80, "
        "autovacuum_analyze_scale_factor = 0.2, toast.autovacuum_enabled = off);"
        "INSERT INTO t SELECT g, 'v' || g % 5, g % 5 FROM generate_series(1, 60) g; CREATE INDEX i ON t (v);"
        "COMMENT ON TABLE t IS 'a table'; COMMENT ON COLUMN t.v IS 'a column'; COMMENT ON INDEX i IS 'an index';"
        "COMMENT ON CONSTRAINT t_pkey ON t IS 'a key';"
        'GRANT SELECT, INSERT ON t TO PUBLIC; GRANT UPDATE (v), REFERENCES (id) ON t TO "plain role" WITH GRANT OPTION;'
        "CREATE STATISTICS s (dependencies, mcv, ndistinct) ON v, n FROM t; "
        "CREATE STATISTICS x ON (n * 2), (lower(v)) FROM t;"
        "ALTER STATISTICS s SET STATISTICS 77; ANALYZE t;"
        "CREATE PUBLICATION a FOR TABLE t WITH (publish = 'insert,update'); CREATE PUBLICATION b FOR ALL TABLES;"
        "ALTER TABLE t ALTER v SET STATISTICS 300, ALTER n SET (n_distinct = -0.5)"
    ),
    "publication of some columns and rows": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int); "
        "INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 60) g;"
        "CREATE PUBLICATION a FOR TABLE t (id, v) WHERE (id > 5); CREATE PUBLICATION b FOR TABLES IN SCHEMA public"
    ),
    "replica identity full": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text); "
        "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g; ALTER TABLE t REPLICA IDENTITY FULL"
    ),
    "replica identity nothing": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text); "
        "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g; ALTER TABLE t REPLICA IDENTITY NOTHING"
    ),
    "replica identity using an index": Kind(
        "CREATE TABLE t (id int NOT NULL, k text NOT NULL, v text); "
        "INSERT INTO t SELECT g, 'k' || g, 'v' FROM generate_series(1, 60) g;"
        "CREATE UNIQUE INDEX i ON t (k); CREATE UNIQUE INDEX j ON t (id); ALTER TABLE t REPLICA IDENTITY USING INDEX i"
    ),
    "rules": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE log (id int, v text); "
        "GRANT ALL ON log TO PUBLIC; INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g;"
        "CREATE RULE a AS ON UPDATE TO t DO ALSO INSERT INTO log VALUES (OLD.id, NEW.v); "
        "CREATE RULE b AS ON DELETE TO t WHERE id > 50 DO INSTEAD NOTHING;"
        "CREATE RULE c AS ON INSERT TO t WHERE NEW.id IS NULL DO INSTEAD NOTHING",
        during=(
            "UPDATE t SET v = 'w' WHERE id % 3 = 0",
            "DELETE FROM t WHERE id % 4 = 0",
            "INSERT INTO t SELECT g FROM generate_series(61, 70) g",
        ),
    ),
    "rules that let nothing through": Kind(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g;"
        "CREATE RULE a AS ON UPDATE TO t DO INSTEAD NOTHING; "
        "CREATE RULE b AS ON DELETE TO t DO INSTEAD NOTHING; CREATE RULE c AS ON INSERT TO t DO INSTEAD NOTHING",
        during=("DELETE FROM t",),
    ),
    "default privileges for what a run makes": Kind(
        'ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO "plain role";'
        "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;"
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g"
    ),
}

KINDS = {
    **{f"toast {name}": kind for name, kind in TOAST.items()},
    **{f"dropped column {name}": kind for name, kind in DROPPED.items()},
    **COLUMNS,
    **RELATIONS,
    **ATTACHED,
}
SINCE = {
    "generated and virtual": 18,
    "generated and virtual, the only long one": 18,
    "publication of some columns and rows": 15,
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=name, marks=[pytest.mark.min_version(SINCE[name])] if name in SINCE else [])
        for name, kind in KINDS.items()
    ],
)
def test_kind(db: Database, plain_role: str, owner: str, kind: Kind) -> None:
    for statement in kind.ddl.split(";") if "VACUUM" in kind.ddl else [kind.ddl]:
        db.execute(statement)
    db.execute(f'ALTER TABLE {kind.table} OWNER TO "{owner}"')
    repack(db, kind.table)
    repack(db, kind.table, during=churn(kind.table) if kind.during is None else kind.during)
    if kind.during is None:
        write(db, kind.table)
        # What the rewritten file has got meanwhile is rewritten as well.
        repack(db, kind.table)


@pytest.mark.parametrize(
    "column", ["id int GENERATED ALWAYS AS IDENTITY", "id serial", "id int GENERATED BY DEFAULT AS IDENTITY"]
)
def test_sequence_goes_on(db: Database, owner: str, column: str) -> None:
    db.execute(
        f"CREATE TABLE t ({column} PRIMARY KEY, v text); INSERT INTO t (v) SELECT 'v' FROM generate_series(1, 60);"
        f'ALTER TABLE t OWNER TO "{owner}"'
    )
    repack(db, "t", during=("INSERT INTO t (v) SELECT 'w' FROM generate_series(1, 9)",))
    assert db.scalar("INSERT INTO t (v) VALUES ('x') RETURNING id") == 70
    if "ALWAYS" in column:
        with pytest.raises(Exception, match="cannot insert a non-DEFAULT value"):
            db.execute("INSERT INTO t VALUES (1000, 'x')")


def test_generated_columns_go_on(db: Database, owner: str) -> None:
    db.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED);"
        f'INSERT INTO t SELECT g, g FROM generate_series(1, 60) g; ALTER TABLE t OWNER TO "{owner}"'
    )
    repack(db, "t", during=("UPDATE t SET a = a + 1",))
    assert db.scalar("UPDATE t SET a = 50 WHERE id = 5 RETURNING b") == 100


def test_only_the_parents_own_rows_are_rewritten(db: Database, owner: str) -> None:
    db.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE c (PRIMARY KEY (id)) INHERITS (t);"
        "INSERT INTO t SELECT g, 'own' FROM generate_series(1, 60) g; "
        "INSERT INTO c SELECT g, 'child' FROM generate_series(1, 60) g;"
        f'ALTER TABLE t OWNER TO "{owner}"'
    )
    child = db.scalar("SELECT pg_relation_filenode('c')")
    repack(db, "t", during=("UPDATE t SET v = v || '!'", "DELETE FROM c WHERE id < 5", "DELETE FROM t WHERE id > 50"))
    assert db.scalar("SELECT pg_relation_filenode('c')") == child
    assert db.fetchall("SELECT tableoid::regclass::text, count(*), min(v) FROM t GROUP BY 1 ORDER BY 1") == [
        ("c", 46, "child!"),
        ("t", 50, "own!"),
    ]


def test_rows_go_on_being_routed_to_partitions(db: Database, owner: str) -> None:
    db.execute(
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE t PARTITION OF p FOR VALUES FROM (0) TO (100); "
        "CREATE TABLE u PARTITION OF p FOR VALUES FROM (100) TO (200);"
        f"INSERT INTO p SELECT g, 'v' FROM generate_series(0, 199) g; ALTER TABLE t OWNER TO \"{owner}\""
    )
    repack(db, "t")
    db.execute("UPDATE p SET id = id + 200 - 100 WHERE id = 0 AND false; DELETE FROM p WHERE id IN (5, 105)")
    db.execute(
        "UPDATE p SET id = 105 WHERE id = 6; UPDATE p SET id = 5 WHERE id = 106; INSERT INTO p VALUES (6, 'new')"
    )
    assert db.fetchall("SELECT tableoid::regclass::text, count(*) FROM p GROUP BY 1 ORDER BY 1") == [
        ("t", 101 - 1),
        ("u", 99),
    ]
    assert db.fetchall("SELECT v FROM p WHERE id IN (5, 6) ORDER BY id") == [("v",), ("new",)]
