-- name: horizon
SELECT 'pid ' || pid || ' (' || coalesce(usename, '?') || coalesce(', ' || nullif(application_name, ''), '') || ', ' || coalesce(state, '?')
       || ', transaction open for ' || date_trunc('second', clock_timestamp() - xact_start) || ')'
  FROM pg_stat_activity
 WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND xact_start < clock_timestamp() - interval '5 minutes'
   AND backend_type = 'client backend' AND (datname = current_database() OR backend_xid IS NOT NULL)
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid) || ' of ' || owner || ', prepared ' || date_trunc('second', clock_timestamp() - prepared) || ' ago'
  FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - interval '5 minutes'
UNION ALL
SELECT 'replication slot ' || quote_ident(slot_name) || ' (' || age(xmin) || ' transactions behind)'
  FROM pg_replication_slots WHERE xmin IS NOT NULL AND age(xmin) > 100000

-- name: all_tables
SELECT pubname FROM pg_publication WHERE puballtables ORDER BY pubname
