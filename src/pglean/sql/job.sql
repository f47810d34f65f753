-- name: create
INSERT INTO pglean.job (relation, schema_name, table_name, phase, options, fingerprint, ordering, client, pglean_version,
                        backend_pid)
VALUES (%(relation)s, %(schema)s, %(name)s, 0, %(options)s, %(fingerprint)s, %(ordering)s, %(client)s, %(version)s,
        pg_backend_pid())
RETURNING id

-- name: phase
SELECT phase FROM pglean.job WHERE id = %(job)s

-- name: enter
UPDATE pglean.job SET phase = %(phase)s, heartbeat_at = clock_timestamp()
 WHERE id = %(job)s AND epoch = %(epoch)s AND state = 'running' AND phase = ANY (%(before)s::smallint[])

-- name: beat
UPDATE pglean.job SET heartbeat_at = clock_timestamp(), progress = %(progress)s WHERE id = %(job)s AND epoch = %(epoch)s

-- name: capture
UPDATE pglean.job SET capture = %(capture)s, blocks = %(pieces)s WHERE id = %(job)s

-- name: chunk
INSERT INTO pglean.chunk (job, first_block, end_block, rows) VALUES (%(job)s, %(first)s, %(end)s, %(rows)s)

-- name: twin
INSERT INTO pglean.twin (job, index_oid, twin_oid) VALUES (%(job)s, %(index)s, %(twin)s)

-- name: built
UPDATE pglean.twin SET built = true WHERE job = %(job)s AND index_oid = %(index)s

-- name: twins
SELECT index_oid, twin_oid FROM pglean.twin WHERE job = %(job)s AND built

-- name: finish
WITH chunks AS (DELETE FROM pglean.chunk WHERE job = %(job)s),
     twins AS (DELETE FROM pglean.twin WHERE job = %(job)s),
     slot AS (DELETE FROM pglean.slot WHERE job = %(job)s AND %(state)s <> 'remains')
UPDATE pglean.job
   SET phase = coalesce(%(phase)s::smallint, phase), state = %(state)s, finished_at = clock_timestamp(), error = %(error)s, result = %(result)s
 WHERE id = %(job)s

-- name: functions
SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'pglean' AND p.proname ~ %(pattern)s

-- name: schema_grantees
SELECT DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END
  FROM pg_namespace n, aclexplode(n.nspacl) g
 WHERE n.nspname = 'pglean' AND g.grantee <> n.nspowner

-- name: triggers
-- Tables with triggers that call functions of a job: the one it was made for, or, in a restored dump of a database
-- in which a run was going on, one with another OID.
SELECT DISTINCT t.tgrelid
  FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'pglean' AND p.proname ~ %(pattern)s

-- name: state
SELECT state FROM pglean.job WHERE id = %(job)s

-- name: load
SELECT id, relation, phase, state, options, fingerprint, ordering, capture, blocks, format('%%I.%%I', schema_name, table_name), epoch
  FROM pglean.job WHERE id = %(job)s

-- name: resumable
-- At most one: a run on a table that has one goes on with it.
SELECT id FROM pglean.job
 WHERE relation = %(relation)s AND state IN ('running', 'paused') AND phase < 80
 ORDER BY id DESC LIMIT 1

-- name: revive
UPDATE pglean.job
   SET state = 'running', epoch = %(epoch)s, command = NULL, error = NULL, options = %(options)s, client = %(client)s,
       pglean_version = %(version)s, backend_pid = pg_backend_pid(), heartbeat_at = clock_timestamp()
 WHERE id = %(job)s

-- name: keep
UPDATE pglean.job SET state = 'paused', command = NULL, error = %(error)s, heartbeat_at = clock_timestamp() WHERE id = %(job)s

-- name: adopt
UPDATE pglean.job SET fingerprint = %(fingerprint)s WHERE id = %(job)s

-- name: request
UPDATE pglean.job SET command = %(command)s WHERE id = %(job)s AND state = 'running'

-- name: command
SELECT command FROM pglean.job WHERE id = %(job)s

-- name: chunks
SELECT first_block, end_block, rows FROM pglean.chunk WHERE job = %(job)s ORDER BY first_block

-- name: all_twins
SELECT index_oid, twin_oid, built FROM pglean.twin WHERE job = %(job)s

-- name: large_indexes
-- Of a table of ours, by the pages that were last counted: asking for the size of the file would wait for its lock.
SELECT c.relname
  FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
 WHERE i.indrelid = pg_catalog.to_regclass(%(name)s)
   AND c.relpages >= %(bytes)s / pg_catalog.current_setting('block_size')::int
   -- Somebody may have added one, whose index cannot be dropped by itself.
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS x WHERE x.conindid = i.indexrelid)

-- name: forget_twin
DELETE FROM pglean.twin WHERE job = %(job)s AND index_oid = %(index)s

-- name: forget_copy
WITH chunks AS (DELETE FROM pglean.chunk WHERE job = %(job)s)
DELETE FROM pglean.twin WHERE job = %(job)s

-- name: ours
-- Whether the run is still as the session of this epoch has left it.
SELECT EXISTS (SELECT FROM pglean.job WHERE id = %(job)s AND epoch = %(epoch)s AND state = 'running')

-- name: lock_ours
-- Until the end of the transaction nobody else ends the run, or goes on with it.
SELECT FROM pglean.job WHERE id = %(job)s AND epoch = %(epoch)s AND state = 'running' FOR UPDATE

-- name: current
-- Whether a session's work counts still; until the end of its transaction, nobody can go on with the run in its place.
SELECT pg_try_advisory_xact_lock_shared(%(namespace)s, %(key)s) AND (SELECT epoch FROM pglean.job WHERE id = %(job)s) = %(epoch)s

-- name: supersede
-- Held for as long as the session has its purpose: until it is closed, or reset to be kept for another.
SELECT pg_advisory_lock(%(namespace)s, %(key)s)

-- name: flush
-- A row where so much WAL has gathered; whoever has locked it has his commit waited for.
SELECT true FROM pglean.version
 WHERE pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn() > %(bytes)s
 LIMIT 1 FOR UPDATE SKIP LOCKED
