-- name: named
SELECT c.oid, c.relkind::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s

-- name: wanted
-- Whether somebody has been waiting for ACCESS EXCLUSIVE on the table, and all others behind him, for so long.
SELECT EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'relation' AND relation = %(oid)s AND NOT granted AND mode = 'AccessExclusiveLock'
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND pid <> ALL (%(ours)s::int[])
                  AND clock_timestamp() - waitstart > %(ms)s * interval '1 ms')

-- name: blockers
-- Locks of prepared transactions have no pid. They keep the virtual transaction id of the session that prepared them (or,
-- after a restart, have -1/xid); what leads to the name is the lock on their own transaction id, held under the same.
SELECT CASE WHEN l.pid IS NULL
            THEN 'prepared transaction ' || coalesce(quote_literal(p.gid), l.virtualtransaction)
                 || coalesce(' of ' || p.owner || ', prepared ' || date_trunc('second', clock_timestamp() - p.prepared) || ' ago', '')
            ELSE 'pid ' || l.pid || ' (' || coalesce(nullif(a.backend_type, 'client backend') || ', ', '')
                 || coalesce(a.usename, '?') || coalesce(', ' || nullif(a.application_name, ''), '')
                 || coalesce(', ' || a.state, '')
                 || coalesce(', transaction open for ' || date_trunc('second', clock_timestamp() - a.xact_start), '')
                 || coalesce(', query begun ' || date_trunc('second', clock_timestamp() - a.query_start) || ' ago', '')
                 || coalesce(': ' || nullif(left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), ''), '') || ')'
       END,
       CASE WHEN l.pid IS NULL THEN quote_literal(p.gid) END,
       l.pid IS NOT NULL AND l.granted AND NOT (a.backend_type = 'autovacuum worker' AND a.query LIKE '%%to prevent wraparound%%')
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
                      AND x.virtualtransaction = l.virtualtransaction
                      AND x.transactionid IN (SELECT transaction FROM pg_prepared_xacts)
  LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
 WHERE l.locktype = 'relation' AND l.relation = %(oid)s
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.mode = ANY (%(modes)s) AND l.pid IS DISTINCT FROM pg_backend_pid()
 ORDER BY l.granted DESC, a.xact_start
 LIMIT 10

-- name: end
-- Cancels or terminates who holds such a lock; never an autovacuum that prevents wraparound.
SELECT 'pid ' || a.pid || ' (' || concat_ws(', ', nullif(a.backend_type, 'client backend'), a.usename, nullif(a.application_name, ''), a.state) || ')',
       CASE WHEN %(terminate)s THEN pg_terminate_backend(a.pid) ELSE pg_cancel_backend(a.pid) END
  FROM pg_stat_activity a
 WHERE CASE a.backend_type WHEN 'autovacuum worker' THEN a.query NOT LIKE '%%to prevent wraparound%%' ELSE NOT %(autovacuum_only)s END
   AND a.pid <> pg_backend_pid()
   AND EXISTS (SELECT FROM pg_locks l
                WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.relation = %(oid)s AND l.granted
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND l.mode = ANY (%(modes)s))

-- name: hold_schema
-- Keeps the schema from being renamed, but not from anything else.
SELECT FROM pg_namespace WHERE nspname = %(schema)s FOR KEY SHARE

-- name: claimed
SELECT EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND granted AND objsubid = 1
                  AND classid = %(namespace)s::bigint::oid AND objid = %(oid)s
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
