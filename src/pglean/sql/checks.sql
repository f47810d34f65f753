-- name: horizon
-- Who holds it, and what ends that; not the session that asks.
SELECT 'pid ' || pid || ' (' || coalesce(usename, '?') || coalesce(', ' || nullif(application_name, ''), '') || ', ' || coalesce(state, '?')
       || ', transaction open for ' || date_trunc('second', clock_timestamp() - xact_start) || ')',
       'SELECT pg_terminate_backend(' || pid || ');'
  FROM pg_stat_activity
 WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND xact_start < clock_timestamp() - make_interval(secs => %(long_s)s)
   AND backend_type = 'client backend' AND (datname = current_database() OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid) || ' of ' || owner || ', prepared ' || date_trunc('second', clock_timestamp() - prepared) || ' ago',
       'COMMIT PREPARED ' || quote_literal(gid) || '; or ROLLBACK PREPARED ' || quote_literal(gid) || ';'
       || CASE WHEN database <> current_database() THEN ' in database ' || quote_ident(database) ELSE '' END
  FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - make_interval(secs => %(long_s)s)
UNION ALL
SELECT 'replication slot ' || quote_ident(slot_name) || ' (' || age(xmin) || ' transactions behind)',
       CASE WHEN active THEN 'end what has long been open on the standby that uses it, or set hot_standby_feedback = off there'
            ELSE 'start the standby that uses it, or SELECT pg_drop_replication_slot(' || quote_literal(slot_name) || ');' END
  FROM pg_replication_slots WHERE xmin IS NOT NULL AND age(xmin) > 100000

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
-- that have been opened so far still have the names that they began with.
SELECT count(*) FILTER (WHERE application_name NOT IN ('pglean preflight', 'pglean watch', 'pglean run', 'pglean resume')),
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
