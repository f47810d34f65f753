-- name: sizes
-- Heap (with its other forks), TOAST with its index, and each index of a table.
-- What was dropped since this query began has no size.
SELECT 'heap', c.relname,
       coalesce(pg_table_size(c.oid) - coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0), 0)
  FROM pg_class c WHERE c.oid = %(oid)s
UNION ALL
SELECT 'toast', t.relname, coalesce(pg_total_relation_size(t.oid), 0)
  FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = %(oid)s
UNION ALL
(SELECT 'index', i.relname, coalesce(pg_relation_size(i.oid), 0)
   FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = %(oid)s ORDER BY i.relname)

-- name: wal_bytes
SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn

-- name: processors
-- The counters stand in front; what follows them can be long. Of processes: ours, and the one that we keep busy.
SELECT pg_read_file('/proc/stat', 0, 32768, true),
       ARRAY(SELECT f.stat
               FROM pg_stat_activity AS a, pg_read_file('/proc/' || a.pid || '/stat', 0, 4096, true) AS f(stat)
              WHERE (a.pid = ANY(%(pids)s) OR a.backend_type = 'walwriter') AND f.stat IS NOT NULL)

-- name: wal_waiters
-- Sessions of others that wait for their commit to reach the disk.
SELECT count(*) FROM pg_stat_activity
 WHERE state = 'active'
   -- The lock is called WALWrite, what its holder does WALSync and WALWrite up to 16, WalSync and WalWrite since 17.
   AND pg_catalog.lower(wait_event) IN ('walwrite', 'walsync') AND application_name NOT LIKE 'pglean %%'

-- name: default_tablespace
SELECT t.spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = current_database()
