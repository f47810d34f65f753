-- name: differences
-- Columns in which the tuples of the one cannot be read as those of the other. Both have as many.
SELECT coalesce(o.attname, s.attname)
  FROM (SELECT * FROM pg_attribute WHERE attrelid = %(table)s AND attnum > 0) o
  FULL JOIN (SELECT * FROM pg_attribute WHERE attrelid = %(shadow)s::regclass AND attnum > 0) s USING (attnum)
 WHERE o.attisdropped IS DISTINCT FROM s.attisdropped
    -- Of a virtual column the heap holds nothing; another type stands in its place.
    OR NOT o.attisdropped AND o.attgenerated <> 'v'
       AND (o.atttypid, o.atttypmod, o.attlen, o.attalign, o.attbyval, o.attcollation)
           IS DISTINCT FROM (s.atttypid, s.atttypmod, s.attlen, s.attalign, s.attbyval, s.attcollation)

-- name: bytes
SELECT pg_table_size(%(shadow)s::regclass)

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
