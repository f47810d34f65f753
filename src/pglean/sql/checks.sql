-- name: all_tables
SELECT pubname FROM pg_publication WHERE puballtables ORDER BY pubname

-- name: event_triggers
-- Those that fire for our DDL, in sessions whose session_replication_role is origin; an extension knows what it does.
SELECT evtname FROM pg_event_trigger e
 WHERE evtenabled IN ('O', 'A') AND evtevent IN ('ddl_command_start', 'ddl_command_end', 'sql_drop')
   AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e')
 ORDER BY evtname

-- name: connections
-- Of ordinary sessions: how many others there are, and how many are kept for superusers and other privileged roles. Ours
-- that have been opened so far still have the names that they began with, or are spare ones.
SELECT count(*) FILTER (WHERE application_name NOT IN ('pglean preflight', 'pglean watch', 'pglean run', 'pglean resume')
                          AND pid <> ALL (%(spares)s)),
       current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true)::int, 0)
  FROM pg_stat_activity
 WHERE backend_type = 'client backend'

-- name: live_bytes
-- What the rows take in pages that are full, by the statistics: a header of 24 bytes and a line pointer of 4 each, and the
-- average widths of the columns. NULL where there are none.
SELECT (c.reltuples * (28 + (SELECT sum((1 - s.stanullfrac) * s.stawidth) FROM pg_statistic s
                              WHERE s.starelid = c.oid AND NOT s.stainherit)))::bigint
  FROM pg_class c
 WHERE c.oid = %(oid)s AND c.reltuples > 0

-- name: layout
-- Whether what was asked for exists; NULL asks for nothing.
SELECT %(tablespace)s::text IS NULL OR EXISTS (SELECT FROM pg_tablespace WHERE spcname = %(tablespace)s AND spcname <> 'pg_global'),
       %(method)s::text IS NULL OR EXISTS (SELECT FROM pg_am WHERE amname = %(method)s AND amtype = 't'),
       %(method)s::text IS NULL OR EXISTS (SELECT FROM pg_am WHERE amname = %(method)s
                                              AND amhandler = 'heap_tableam_handler(internal)'::regprocedure),
       %(compression)s::text IS NULL OR EXISTS (SELECT FROM pg_settings
                                                 WHERE name = 'default_toast_compression' AND %(compression)s = ANY (enumvals))
