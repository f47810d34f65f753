-- Who could see a table as it was before a moment.

-- name: bounds
-- A snapshot whose xmin is not below this xmax sees whatever is committed now; one that is taken from now on has an xmin
-- not below this xmin, whatever it sees.
SELECT pg_snapshot_xmin(s)::xid::text, pg_snapshot_xmax(s)::xid::text FROM pg_current_snapshot() AS s

-- name: fresh
-- Within a transaction pg_stat_activity shows what it showed first.
SELECT pg_stat_clear_snapshot()

-- name: holders
-- Transactions of this database that hold a snapshot which may not see all, by what identifies each; whether it is one
-- from before the bounds for certain; whether others may get theirs from it (exported ones are files that bear the
-- virtual id).
-- VACUUM (and its helpers) reads by no snapshot; other databases cannot read this one's tables; a prepared transaction
-- reads nothing any more.
SELECT a.pid, l.virtualtransaction,
       'pid ' || a.pid || ' (' || coalesce(nullif(a.backend_type, 'client backend') || ', ', '')
       || coalesce(a.usename, '?') || coalesce(', ' || nullif(a.application_name, ''), '')
       || coalesce(', ' || a.state, '')
       || coalesce(', transaction open for ' || date_trunc('second', clock_timestamp() - a.xact_start), '')
       || coalesce(', query begun ' || date_trunc('second', clock_timestamp() - a.query_start) || ' ago', '')
       || coalesce(': ' || nullif(left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), ''), '') || ')',
       age(a.backend_xmin) > age(%(xmin)s::xid),
       EXISTS (SELECT FROM pg_ls_dir('pg_snapshots') AS file
                WHERE starts_with(file, (SELECT string_agg(lpad(upper(to_hex(part::bigint)), 8, '0') || '-', '')
                                           FROM unnest(string_to_array(l.virtualtransaction, '/')) AS part)))
  FROM pg_stat_activity a
  JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'virtualxid' AND l.virtualxid = l.virtualtransaction AND l.granted
 WHERE age(a.backend_xmin) > age(%(xmax)s::xid) AND a.datname = current_database()
   AND a.pid <> ALL (%(ours)s::int[])
   AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid IN (a.pid, a.leader_pid))
UNION ALL
-- A replication slot that is being made for a subscriber: the snapshot that its session will have and give away is of a
-- moment that has passed, and not to be seen yet.
SELECT s.active_pid, 'slot ' || s.slot_name, 'pid ' || s.active_pid || ' (makes replication slot ' || quote_ident(s.slot_name) || ')',
       true, true
  FROM pg_replication_slots s
  JOIN pg_stat_activity a ON a.pid = s.active_pid AND a.backend_type = 'walsender'
 WHERE s.slot_type = 'logical' AND s.database = current_database() AND s.confirmed_flush_lsn IS NULL

-- name: pressing
-- Whether one of these sessions waits for a lock on the table, or anybody for one that keeps readers waiting behind him.
SELECT EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'relation' AND relation = %(oid)s AND NOT granted
                  AND (pid = ANY (%(pids)s::int[]) OR mode = 'AccessExclusiveLock')
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))

-- name: undecided
-- A statement that is a transaction by itself begins with it, or, in the extended protocol, when it is bound: within a
-- millisecond. Its helpers do not count.
SELECT EXISTS (SELECT FROM pg_locks l
                 LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                WHERE l.locktype = 'relation' AND l.relation = %(oid)s AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND (a.state = 'active' AND a.query_start - a.xact_start < interval '1 ms' OR a.leader_pid IS NOT NULL) IS NOT TRUE)

-- name: circle
-- Whether somebody who has a lock on the table waits, directly or not, for this session: a request that waits for him
-- would be a deadlock.
WITH RECURSIVE locks AS MATERIALIZED (SELECT * FROM pg_locks),
chain (pid) AS (
    SELECT l.pid FROM locks l
     WHERE l.locktype = 'relation' AND l.relation = %(oid)s AND l.granted AND l.pid <> pg_backend_pid()
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND EXISTS (SELECT FROM locks w WHERE w.pid = l.pid AND NOT w.granted)
    UNION
    SELECT b.pid FROM chain c, unnest(pg_blocking_pids(c.pid)) AS b (pid) WHERE c.pid <> pg_backend_pid())
SELECT EXISTS (SELECT FROM chain WHERE pid = pg_backend_pid())

-- name: deadlock_timeout
SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'
