-- The schema `pglean`: jobs and their checkpoints. It belongs to the administrator, and nobody else may even name
-- anything in it (no USAGE): the helpers of a run stand here, some of which belong to the owner of the table.
-- Migrations are applied in order, in one transaction each; pglean.version says which have been.

-- migration: 1
CREATE TABLE pglean.version (
    version      integer     NOT NULL PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

-- One row per run. `phase` bears the fixed numbers of rewrite/phase.py. What identifies the run's objects
-- (their names follow from `id`) is written before the objects are made.
CREATE TABLE pglean.job (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation       oid         NOT NULL,
    schema_name    text        NOT NULL,
    table_name     text        NOT NULL,
    phase          smallint    NOT NULL,
    state          text        NOT NULL DEFAULT 'running'
                   CHECK (state IN ('running', 'done', 'undone', 'remains')),
    options        jsonb       NOT NULL,
    -- What must not change under the run: catalog.fingerprint.
    fingerprint    jsonb       NOT NULL,
    -- Identity of the capture, e.g. OID and xmin of each trigger.
    capture        jsonb,
    -- Blocks of the heap when the capture was on: these are copied, later ones need no copy.
    blocks         bigint,
    client         text        NOT NULL,
    pglean_version text        NOT NULL,
    backend_pid    integer     NOT NULL,
    started_at     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    heartbeat_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at    timestamptz,
    progress       jsonb,
    error          text,
    result         jsonb
);

-- Ranges of blocks that are copied; written in the transaction that copies them.
CREATE TABLE pglean.chunk (
    job         bigint NOT NULL,
    first_block bigint NOT NULL,
    end_block   bigint NOT NULL,
    rows        bigint NOT NULL,
    PRIMARY KEY (job, first_block)
);

-- Indexes of the shadow: each is there, empty, from the start; `built` is written in the transaction that builds it.
CREATE TABLE pglean.twin (
    job         bigint  NOT NULL,
    index_oid   oid     NOT NULL,
    twin_oid    oid     NOT NULL,
    built       boolean NOT NULL DEFAULT false,
    PRIMARY KEY (job, index_oid)
);

-- A table whose relrewrite is not 0 is passed over by logical decoding, as the transient heap of VACUUM FULL is:
-- without it, a subscriber of a publication FOR ALL TABLES stops at the first row that we write. Its TOAST table bears
-- the mark as well: chunks that were decoded while their row was passed over pile up in the decoder, and the next row
-- of the same transaction ends it ("could not open toast relation with OID 0").
-- Only for tables in our own schema. INVOKER: only a superuser may write to pg_class anyway.
CREATE FUNCTION pglean.conceal_1(relation regclass, original oid) RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    UPDATE pg_catalog.pg_class AS c SET relrewrite = original
      FROM pg_catalog.pg_class AS m
     WHERE m.oid = relation AND c.oid IN (m.oid, m.reltoastrelid)
       AND m.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'pglean');
END;
REVOKE ALL ON FUNCTION pglean.conceal_1(regclass, oid) FROM PUBLIC;

-- An index that is not ready is neither maintained by writers nor used by readers, until REINDEX builds it.
-- Only for indexes in our own schema.
CREATE FUNCTION pglean.postpone_1(index regclass) RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    UPDATE pg_catalog.pg_index AS i SET indisready = false, indisvalid = false
      FROM pg_catalog.pg_class AS c
     WHERE i.indexrelid = index AND c.oid = i.indexrelid
       AND c.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'pglean');
END;
REVOKE ALL ON FUNCTION pglean.postpone_1(regclass) FROM PUBLIC;

SELECT pglean.conceal_1(c.oid::regclass, c.oid)
  FROM pg_catalog.pg_class AS c
 WHERE c.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'pglean') AND c.relkind = 'r';

-- migration: 2
-- A run that was paused, or ended by what will pass, is kept; other sessions ask it to pause, to swap, to end.
ALTER TABLE pglean.job
    DROP CONSTRAINT job_state_check,
    ADD CONSTRAINT job_state_check CHECK (state IN ('running', 'paused', 'done', 'undone', 'remains')),
    ADD COLUMN command text CHECK (command IN ('pause', 'swap', 'abort')),
    -- How often the run was resumed: a session that belongs to an earlier epoch must not write any more.
    ADD COLUMN epoch integer NOT NULL DEFAULT 0;

-- migration: 3
-- A table whose rows are sorted is copied by ranges of values, or as a whole: `ordering` says how, and is NULL where it
-- is copied by ranges of blocks. `blocks`, and the columns of pglean.chunk, then count and number these pieces.
ALTER TABLE pglean.job ADD COLUMN ordering jsonb;

-- migration: 4
-- The replication slot of a run that captures changes from the WAL: up to where what it told is in the change table.
CREATE TABLE pglean.slot (
    job         bigint  NOT NULL PRIMARY KEY,
    name        text    NOT NULL,
    temporary   boolean NOT NULL,
    decoded     pg_lsn  NOT NULL
);
SELECT pglean.conceal_1('pglean.slot', 'pglean.slot'::pg_catalog.regclass::oid);

-- migration: 5
-- The hash of a row's image, by which an index of the copy finds rows of tables without a key. It has to be a function of
-- the image and of nothing else: values are hashed as their types send them, which no setting of a session changes, but
-- for the client's encoding. So that is the database's own here, whoever has the index rebuilt. (A parallel worker may not
-- change it.)
-- Whoever owns a table may execute them: its index is built and kept up with his rights. Nobody but us can name them. That
-- is said though it is the default, which ALTER DEFAULT PRIVILEGES may have changed.
SELECT pg_catalog.set_config('client_encoding', pg_catalog.getdatabaseencoding(), true);
CREATE FUNCTION pglean.image_1(image record) RETURNS bytea
LANGUAGE internal IMMUTABLE STRICT PARALLEL UNSAFE SET client_encoding FROM CURRENT AS 'record_send';
SELECT pg_catalog.set_config('client_encoding', 'UTF8', true);

CREATE FUNCTION pglean.hash_1(image bytea, seed bigint) RETURNS bigint
LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'hashvarlenaextended';

GRANT EXECUTE ON FUNCTION pglean.image_1(record), pglean.hash_1(bytea, bigint) TO PUBLIC;
