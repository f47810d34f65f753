-- Indexes as REINDEX CONCURRENTLY sees them, and who is in its way.

-- name: relations
-- MAINTAIN is a privilege since 17; before, asking for it is an error. A TOAST table belongs to another, whose run it is.
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.oid < 12000,
       pg_has_role(c.relowner, 'USAGE'),
       CASE WHEN current_setting('server_version_num')::int >= 170000 THEN has_table_privilege(c.oid, 'MAINTAIN') ELSE false END,
       has_schema_privilege(n.oid, 'USAGE'), pg_get_userbyid(c.relowner),
       CASE WHEN c.relkind = 't' THEN coalesce((SELECT m.oid FROM pg_class m WHERE m.reltoastrelid = c.oid), c.oid) ELSE c.oid END,
       nullif(c.reltoastrelid, 0)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY (%(oids)s::oid[])

-- name: table_of
-- The table of an index, partitioned or not; NULL for what is none.
SELECT i.indrelid FROM pg_index i WHERE i.indexrelid = %(oid)s

-- name: indexes
-- What a failed REINDEX CONCURRENTLY leaves is invalid, bears the name of its index with a suffix, and is defined as that
-- one is (NULLS NOT DISTINCT came with 15). What stands in for it must be no such leftover itself.
SELECT i.indexrelid, n.nspname, c.relname, i.indrelid, v.valid, i.indisexclusion,
       (SELECT con.conname FROM pg_constraint con
         WHERE con.conrelid = i.indrelid AND con.conindid = i.indexrelid AND con.contype IN ('p', 'u', 'x') LIMIT 1),
       (SELECT h.inhparent::regclass::text FROM pg_inherits h WHERE h.inhrelid = i.indexrelid),
       original.name,
       pg_relation_size(i.indexrelid)
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i'
  JOIN pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL (SELECT i.indisvalid AND i.indisready AND i.indislive) v (valid)
  LEFT JOIN LATERAL (
      SELECT quote_ident(n.nspname) || '.' || quote_ident(oc.relname)
        FROM pg_index o JOIN pg_class oc ON oc.oid = o.indexrelid
       WHERE NOT v.valid AND c.relname ~ '_cc(new|old)[0-9]*$'
         AND o.indrelid = i.indrelid AND o.indexrelid <> i.indexrelid
         AND (o.indisvalid OR oc.relname !~ '_cc(new|old)[0-9]*$')
         AND NOT o.indisexclusion AND o.indisunique = i.indisunique AND oc.relam = c.relam AND o.indnkeyatts = i.indnkeyatts
         AND (o.indkey::text, o.indclass::text, o.indcollation::text, o.indoption::text)
             = (i.indkey::text, i.indclass::text, i.indcollation::text, i.indoption::text)
         AND pg_get_expr(o.indexprs, o.indrelid) IS NOT DISTINCT FROM pg_get_expr(i.indexprs, i.indrelid)
         AND pg_get_expr(o.indpred, o.indrelid) IS NOT DISTINCT FROM pg_get_expr(i.indpred, i.indrelid)
         AND to_jsonb(o) -> 'indnullsnotdistinct' IS NOT DISTINCT FROM to_jsonb(i) -> 'indnullsnotdistinct'
         AND oc.reloptions IS NOT DISTINCT FROM c.reloptions
         AND NOT EXISTS (SELECT FROM pg_attribute a JOIN pg_attribute b USING (attnum)
                          WHERE a.attrelid = o.indexrelid AND b.attrelid = i.indexrelid
                            AND a.attoptions IS DISTINCT FROM b.attoptions)
       ORDER BY starts_with(c.relname, oc.relname) DESC, oc.relname
       LIMIT 1) original (name) ON true
 WHERE i.indrelid = %(table)s
 ORDER BY i.indexrelid

-- name: builder
-- Who builds or drops the index just now; with 0 for it, who builds any of the table. REINDEX and DROP INDEX CONCURRENTLY
-- have it locked; CREATE INDEX CONCURRENTLY only the table, as others have, and is told from these by what it reports.
-- Its process id everybody may see there, but not which index it is.
SELECT 'pid ' || l.pid || coalesce(' (' || nullif(concat_ws(', ', a.usename, nullif(a.application_name, '')), '') || ')', '')
  FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND (l.relation = %(index)s
        AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
        OR l.relation = %(table)s
           AND EXISTS (SELECT FROM pg_stat_progress_create_index p
                        WHERE p.pid = l.pid AND coalesce(nullif(p.relid, 0), l.relation) = l.relation
                          AND (%(index)s = 0 OR coalesce(nullif(p.index_relid, 0), %(index)s) = %(index)s)))
 LIMIT 1

-- name: still_invalid
-- Whether it is there, by this name, and invalid.
SELECT EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE i.indexrelid = %(index)s AND n.nspname = %(schema)s AND c.relname = %(name)s
                  AND NOT (i.indisvalid AND i.indisready AND i.indislive))

-- name: in_line
SELECT EXISTS (SELECT FROM pg_locks
                WHERE pid = %(pid)s AND locktype = 'relation' AND relation = %(index)s AND NOT granted
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))

-- name: present
SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = %(index)s)

-- name: invalid
SELECT i.indexrelid FROM pg_index i WHERE i.indrelid = %(table)s AND NOT (i.indisvalid AND i.indisready AND i.indislive)

-- name: named
-- The index that the name means now, if it is valid, and its tablespace. Takes no lock.
SELECT c.oid, coalesce(t.spcname, (SELECT e.spcname FROM pg_database d JOIN pg_tablespace e ON e.oid = d.dattablespace
                                    WHERE d.datname = current_database()))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_index i ON i.indexrelid = c.oid
  LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND i.indisvalid AND i.indisready AND i.indislive

-- name: size
SELECT pg_relation_size(%(index)s)

-- name: size_recorded
-- As it was when the index was built; takes no lock.
SELECT c.relpages::bigint * current_setting('block_size')::bigint FROM pg_class c WHERE c.oid = %(index)s

-- name: at_work
-- Whether a session has, or wants, a lock on the table or an index of it.
SELECT EXISTS (SELECT FROM pg_locks l
                WHERE l.pid = %(pid)s AND l.locktype = 'relation'
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND (l.relation = %(table)s OR l.relation IN (SELECT i.indexrelid FROM pg_index i WHERE i.indrelid = %(table)s)))

-- name: tablespace
-- Whether it is there, and whether we may put anything into it: that of the database is everybody's.
SELECT t.oid = d.dattablespace OR has_tablespace_privilege(t.oid, 'CREATE')
  FROM pg_database d CROSS JOIN pg_tablespace t
 WHERE d.datname = current_database() AND t.spcname = %(name)s

-- name: waits
-- What sessions of ours wait for: the table which, or an index of which, they want to lock, whether they have begun their work
-- (they lock the table, then the index), and who is in the way. A process id of 0 is a prepared transaction.
SELECT l.pid, coalesce((SELECT i.indrelid FROM pg_index i WHERE i.indexrelid = l.relation), l.relation),
       EXISTS (SELECT FROM pg_locks g JOIN pg_index i ON i.indexrelid = g.relation
                WHERE g.pid = l.pid AND g.granted AND g.locktype = 'relation' AND g.mode = 'ShareUpdateExclusiveLock'
                  AND g.database = (SELECT oid FROM pg_database WHERE datname = current_database())),
       (SELECT string_agg(CASE WHEN b.pid = 0
                               THEN 'prepared transaction' || coalesce((SELECT ' ' || quote_literal(p.gid) FROM pg_prepared_xacts p
                                                                         WHERE p.transaction = l.transactionid), '')
                               ELSE 'pid ' || b.pid || coalesce(' (' || nullif(concat_ws(', ',
                                        nullif(a.backend_type, 'client backend'), a.usename, nullif(a.application_name, ''), a.state,
                                        'transaction open since ' || to_char(a.xact_start, 'HH24:MI:SS'),
                                        nullif(left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), '')), '') || ')', '')
                          END, '; ' ORDER BY b.pid)
          FROM (SELECT DISTINCT pid FROM unnest(pg_blocking_pids(l.pid)) AS pid) b LEFT JOIN pg_stat_activity a ON a.pid = b.pid)
  FROM pg_locks l
 WHERE NOT l.granted AND l.pid = ANY (%(pids)s::int[])

-- name: work
-- How far the scan of the table, or the validation, has come.
SELECT p.pid, p.blocks_done, p.blocks_total
  FROM pg_stat_progress_create_index p
 WHERE p.pid = ANY (%(pids)s::int[]) AND p.blocks_total > 0

-- name: kept_waiting
-- Who wants a lock, for more than two seconds already, that a session of ours is in the way of, and keeps everybody waiting who
-- comes after him.
SELECT b.pid, l.pid, 'pid ' || l.pid || coalesce(' (' || nullif(concat_ws(', ', a.usename, nullif(a.application_name, ''),
           nullif(left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), '')), '') || ')', '')
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  CROSS JOIN LATERAL (SELECT DISTINCT pid FROM unnest(pg_blocking_pids(l.pid)) AS pid) b
 WHERE l.locktype = 'relation' AND NOT l.granted AND l.mode = 'AccessExclusiveLock'
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND clock_timestamp() - l.waitstart > interval '2 s'
   AND b.pid = ANY (%(pids)s::int[])
