-- Who could see a table as it was before a moment.

-- name: holders
-- Transactions of this database that hold a snapshot, by what identifies each. VACUUM reads by no snapshot; other
-- databases cannot read this one's tables; a prepared transaction reads nothing any more.
SELECT a.pid, l.virtualtransaction,
       'pid ' || a.pid || ' (' || coalesce(a.usename, '?') || coalesce(', ' || nullif(a.application_name, ''), '')
       || coalesce(', ' || a.state, '')
       || coalesce(', transaction open for ' || date_trunc('second', clock_timestamp() - a.xact_start), '')
       || coalesce(': ' || nullif(left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), ''), '') || ')'
  FROM pg_stat_activity a
  JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'virtualxid' AND l.virtualxid = l.virtualtransaction AND l.granted
 WHERE a.backend_xmin IS NOT NULL AND a.datname = current_database()
   AND a.pid <> ALL (%(ours)s::int[])
   AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)

-- name: waiting_for
-- Sessions that wait for a lock on the table.
SELECT pid FROM pg_locks
 WHERE locktype = 'relation' AND relation = %(oid)s AND NOT granted
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
