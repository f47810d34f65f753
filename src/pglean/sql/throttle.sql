-- name: position
-- What is flushed is what a standby can have.
SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint

-- name: rights
-- Without this role's rights, columns about sessions of others are NULL.
SELECT pg_has_role('pg_read_all_stats', 'USAGE')

-- name: standbys
-- What only receives (pg_receivewal, pg_basebackup) never says that it has replayed anything, nor always that it flushed.
SELECT r.application_name, coalesce(r.state, 'unknown'),
       EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'),
       r.replay_lsn IS NULL AND r.write_lsn IS NOT NULL,
       pg_wal_lsn_diff(coalesce(r.replay_lsn, r.write_lsn), '0/0')::bigint,
       extract(epoch FROM r.replay_lag)::float8
  FROM pg_stat_replication r
 ORDER BY r.application_name, r.pid

-- name: sessions
-- Sessions that work, and those that wait for a lock. Where track_activities is off, nobody can know: it counts as work.
-- Another run of ours is not counted: two runs would wait for each other.
SELECT count(*) FILTER (WHERE state IN ('active', 'fastpath function call', 'disabled')),
       count(*) FILTER (WHERE wait_event_type = 'Lock')
  FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND application_name NOT LIKE 'pglean %%' AND pid <> pg_backend_pid()

-- name: server
SELECT current_setting('data_directory'), pg_read_binary_file('postmaster.pid', 0, 65536, true),
       pg_walfile_name(pg_current_wal_flush_lsn())

-- name: tablespace
-- By its name, or the one of the database; with the directory in which this version of the server keeps its files.
SELECT t.oid, t.spcname,
       'PG_' || current_setting('server_version_num')::int / 10000 || '_' || (SELECT catalog_version_no FROM pg_control_system())
  FROM pg_tablespace t
 WHERE t.spcname = coalesce(%(name)s::name,
                            (SELECT s.spcname FROM pg_database d JOIN pg_tablespace s ON s.oid = d.dattablespace
                              WHERE d.datname = current_database()))
