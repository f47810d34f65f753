-- Who keeps VACUUM from removing what is dead in this database: the oldest transaction that anybody can still see.

-- name: holders
-- Sessions, prepared transactions, replication slots, and standbys that tell their oldest snapshot without a slot.
-- VACUUM itself (not FULL) holds nothing back. A snapshot in another database keeps no row of this one; a transaction
-- that writes there is older than the snapshots that are taken here, and counts through them. Slots count everywhere.
-- Of sessions that the role may not look at nothing but their number is known, see `hidden`.
-- A session does not hold since its transaction began: a snapshot may be that of the statement that runs, and an XID is
-- assigned with the first write, which where nothing runs was before that. What is held while nothing runs is the snapshot
-- of the whole transaction, or a cursor's.
SELECT 'session', a.pid, '', coalesce(a.usename, a.backend_type), coalesce(a.application_name, ''), a.datname, coalesce(a.state, '?'),
       a.query, greatest(age(here.xmin), age(a.backend_xid)),
       least(CASE WHEN a.backend_xid IS NOT NULL AND current_setting('track_commit_timestamp')::bool
                  THEN pg_xact_commit_timestamp(((a.backend_xid::text::bigint - 1)::text)::xid) END,
             CASE WHEN a.state IN ('active', 'fastpath function call')
                  THEN CASE WHEN a.backend_xid IS NULL THEN a.query_start END
                  WHEN a.backend_xid IS NOT NULL AND here.xmin IS NULL THEN a.state_change
                  -- Walsenders do not tell when their transaction began.
                  ELSE coalesce(a.xact_start, a.state_change) END),
       extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.query_start))::float8, true, false, a.backend_type, false
  FROM pg_stat_activity a
 CROSS JOIN LATERAL (SELECT CASE WHEN a.datname = current_database() THEN a.backend_xmin END) AS here(xmin)
 WHERE (here.xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
   -- A subscriber's first copy of a table runs in a walsender, in a transaction, and streams nothing; others are told below.
   AND a.pid NOT IN (SELECT r.pid FROM pg_stat_replication r WHERE r.state IN ('catchup', 'streaming', 'stopping'))
   -- Workers that apply in parallel have a leader, too, but transactions of their own.
   AND a.backend_type IS DISTINCT FROM 'parallel worker'
   AND a.pid NOT IN (SELECT v.pid FROM pg_stat_progress_vacuum v)
UNION ALL
SELECT 'prepared transaction', NULL, gid, owner, '', database, '', NULL, age(transaction), prepared,
       extract(epoch FROM clock_timestamp() - prepared)::float8, false, false, '', false
  FROM pg_prepared_xacts
UNION ALL
-- Since when a slot holds what it holds, is known where commits leave their time.
SELECT 'replication slot', s.active_pid, s.slot_name, NULL, '', s.database, s.slot_type, NULL, age(held.xid),
       least(CASE WHEN current_setting('track_commit_timestamp')::bool THEN pg_xact_commit_timestamp(held.xid) END,
             (to_jsonb(s) ->> 'inactive_since')::timestamptz),
       NULL, s.active, held.catalogs_only, '', s.wal_status IS NOT DISTINCT FROM 'lost'
  FROM pg_replication_slots s
 CROSS JOIN LATERAL (VALUES (s.xmin, false), (s.catalog_xmin, true)) AS held(xid, catalogs_only)
 WHERE held.xid IS NOT NULL
UNION ALL
SELECT 'standby', r.pid, '', r.usename, coalesce(r.application_name, ''), NULL, r.state, NULL, age(r.backend_xmin),
       CASE WHEN current_setting('track_commit_timestamp')::bool THEN pg_xact_commit_timestamp(r.backend_xmin) END,
       NULL, true, false, '', false
  FROM pg_stat_replication r
 WHERE r.backend_xmin IS NOT NULL AND r.state IN ('catchup', 'streaming', 'stopping')

-- name: hidden
-- Other sessions that the role may not look at.
SELECT count(*) FROM pg_stat_activity WHERE backend_type IS NULL AND usesysid IS NOT NULL AND datid IS NOT NULL
