-- name: visible
SELECT relpages, relallvisible FROM pg_class WHERE oid = %(shadow)s::regclass

-- name: horizon
-- Whoever has the oldest snapshots or transactions that this database's VACUUM must respect.
SELECT 'pid ' || pid || ' (' || coalesce(usename, '?') || coalesce(', ' || nullif(application_name, ''), '')
       || ', transaction open for ' || date_trunc('second', clock_timestamp() - xact_start) || ')'
  FROM pg_stat_activity
 WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()
   AND backend_type = 'client backend' AND application_name NOT LIKE 'pglean %%'
   AND (datname = current_database() OR backend_xid IS NOT NULL)
   AND xact_start < clock_timestamp() - interval '1 second'
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid) FROM pg_prepared_xacts
UNION ALL
SELECT 'replication slot ' || quote_ident(slot_name) FROM pg_replication_slots WHERE xmin IS NOT NULL
 LIMIT 5
