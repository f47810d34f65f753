-- name: create
INSERT INTO pglean.job (relation, schema_name, table_name, phase, options, fingerprint, client, pglean_version, backend_pid)
VALUES (%(relation)s, %(schema)s, %(name)s, 0, %(options)s, %(fingerprint)s, %(client)s, %(version)s, pg_backend_pid())
RETURNING id

-- name: phase
SELECT phase FROM pglean.job WHERE id = %(job)s

-- name: enter
UPDATE pglean.job SET phase = %(phase)s, heartbeat_at = clock_timestamp() WHERE id = %(job)s

-- name: beat
UPDATE pglean.job SET heartbeat_at = clock_timestamp(), progress = %(progress)s WHERE id = %(job)s

-- name: capture
UPDATE pglean.job SET capture = %(capture)s, blocks = %(blocks)s WHERE id = %(job)s

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
     twins AS (DELETE FROM pglean.twin WHERE job = %(job)s)
UPDATE pglean.job
   SET phase = coalesce(%(phase)s::smallint, phase), state = %(state)s, finished_at = clock_timestamp(), error = %(error)s, result = %(result)s
 WHERE id = %(job)s

-- name: unfinished
SELECT j.id, j.schema_name, j.table_name, j.relation, j.phase,
       CASE WHEN j.state = 'remains' THEN 'remains'
            WHEN EXISTS (SELECT FROM pg_locks l
                          WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                            AND l.classid = 1885826149::oid AND l.objid = j.relation
                            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
            THEN 'running' ELSE 'interrupted' END,
       j.progress,
       extract(epoch FROM clock_timestamp() - j.started_at), extract(epoch FROM clock_timestamp() - j.heartbeat_at),
       coalesce(pg_total_relation_size(to_regclass('pglean.changes_' || j.id)), 0),
       coalesce(pg_total_relation_size(to_regclass('pglean.shadow_' || j.id)), 0),
       j.error
  FROM pglean.job j
 WHERE j.state IN ('running', 'remains')
 ORDER BY j.id

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
