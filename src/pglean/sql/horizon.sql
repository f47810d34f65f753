-- Who keeps VACUUM from removing what is dead in this database: the oldest transaction that anybody can still see.

-- name: holders
-- Sessions, prepared transactions, replication slots, and standbys that tell their oldest snapshot without a slot.
-- VACUUM itself (not FULL) holds nothing back. A snapshot in another database keeps no row of this one; a transaction
-- that writes there is older than the snapshots that are taken here, and counts through them. Slots count everywhere.
-- Of sessions that the role may not look at nothing but their number is known, see `hidden`.
SELECT 'session', a.pid, '', coalesce(a.usename, a.backend_type), coalesce(a.application_name, ''), a.datname, coalesce(a.state, '?'),
       a.query, greatest(age(a.backend_xmin), age(a.backend_xid)), a.xact_start,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8, true, false, false
  FROM pg_stat_activity a
 WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
   AND a.backend_type <> 'walsender' AND a.leader_pid IS NULL
   AND (a.datname = current_database() OR a.backend_xid IS NOT NULL)
   AND a.pid NOT IN (SELECT v.pid FROM pg_stat_progress_vacuum v)
UNION ALL
SELECT 'prepared transaction', NULL, gid, owner, '', database, '', NULL, age(transaction), prepared,
       extract(epoch FROM clock_timestamp() - prepared)::float8, false, false, false
  FROM pg_prepared_xacts
UNION ALL
-- Since when a slot holds what it holds, is known where commits leave their time.
SELECT 'replication slot', s.active_pid, s.slot_name, NULL, '', s.database, s.slot_type, NULL, age(held.xid),
       least(CASE WHEN current_setting('track_commit_timestamp')::bool THEN pg_xact_commit_timestamp(held.xid) END,
             (to_jsonb(s) ->> 'inactive_since')::timestamptz),
       NULL, s.active, held.catalogs_only, s.wal_status IS NOT DISTINCT FROM 'lost'
  FROM pg_replication_slots s
 CROSS JOIN LATERAL (VALUES (s.xmin, false), (s.catalog_xmin, true)) AS held(xid, catalogs_only)
 WHERE held.xid IS NOT NULL
UNION ALL
SELECT 'standby', r.pid, '', r.usename, coalesce(r.application_name, ''), NULL, r.state, NULL, age(r.backend_xmin),
       CASE WHEN current_setting('track_commit_timestamp')::bool THEN pg_xact_commit_timestamp(r.backend_xmin) END,
       NULL, true, false, false
  FROM pg_stat_replication r
 WHERE r.backend_xmin IS NOT NULL

-- name: hidden
-- Other sessions that the role may not look at.
SELECT count(*) FROM pg_stat_activity WHERE backend_type IS NULL AND usesysid IS NOT NULL AND datid IS NOT NULL
