-- What other sessions see of runs.

-- name: unfinished
-- A run lives as long as a session has the claim on its table.
SELECT j.id, j.schema_name, j.table_name, j.relation, j.phase,
       CASE WHEN j.state IN ('remains', 'paused') THEN j.state
            -- Locks are not to be seen on a standby.
            WHEN pg_is_in_recovery() THEN 'unknown'
            WHEN NOT EXISTS (SELECT FROM pg_locks l
                              WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                                AND l.classid = 1885826149::oid AND l.objid = j.relation
                                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
            THEN 'interrupted'
            WHEN j.phase = 60 THEN 'ready'
            ELSE 'running' END,
       j.progress,
       extract(epoch FROM clock_timestamp() - j.started_at), extract(epoch FROM clock_timestamp() - j.heartbeat_at),
       j.command, j.error, coalesce(j.options ->> 'capture', 'trigger'), s.name
  FROM pglean.job j LEFT JOIN pglean.slot s ON s.job = j.id
 WHERE j.state IN ('running', 'paused', 'remains')
 ORDER BY j.id

-- name: sizes
-- Opens the indexes, of which one may be locked for as long as it is being built.
SELECT coalesce(pg_total_relation_size(to_regclass('pglean.changes_' || %(job)s)), 0),
       coalesce(pg_total_relation_size(to_regclass('pglean.shadow_' || %(job)s)), 0)

-- name: sizes_of_files
-- The same of the files that can be looked at without any lock, by their names.
SELECT coalesce(sum((pg_stat_file(pg_relation_filepath(c.oid), true)).size) FILTER (WHERE c.relname = 'changes_' || %(job)s), 0)::bigint,
       coalesce(sum((pg_stat_file(pg_relation_filepath(c.oid), true)).size) FILTER (WHERE c.relname <> 'changes_' || %(job)s), 0)::bigint
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'pglean' AND c.relkind IN ('r', 'i')
   AND (c.relname IN ('changes_' || %(job)s, 'shadow_' || %(job)s) OR c.relname LIKE 'twin\_' || %(job)s || '\_%%')

-- name: history
SELECT id, schema_name, table_name, state, started_at, finished_at,
       extract(epoch FROM finished_at - started_at)::float8, result, error, client, pglean_version
  FROM pglean.job
 WHERE state IN ('done', 'undone')
 ORDER BY id DESC
 LIMIT %(limit)s
