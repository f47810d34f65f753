-- What the server counts and knows of tables and indexes beyond their sizes; each for a whole database. No relation is
-- opened, so nobody's lock is in the way.

-- name: settings
-- Of other roles' sessions, and so of autovacuum's, the role may see nothing.
SELECT current_setting('autovacuum')::bool AND current_setting('track_counts')::bool,
       current_setting('autovacuum_vacuum_threshold')::float8, current_setting('autovacuum_vacuum_scale_factor')::float8,
       nullif(current_setting('autovacuum_vacuum_max_threshold', true)::float8, -1),
       maintenance.bytes, coalesce(autovacuum.bytes, maintenance.bytes), current_setting('autovacuum_max_workers')::int,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'),
       clock_timestamp(), greatest((SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()),
                                    -- Of those that are never reset by themselves this tells when a crash has lost them all.
                                    (SELECT stats_reset FROM pg_stat_archiver)),
       (SELECT count(*) FROM pg_stat_replication)
       + (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT active),
       pg_is_in_recovery(),
       CASE WHEN NOT pg_is_in_recovery()
            THEN ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END,
       -- At the most, as reading alone takes no XID; but subtransactions take one each.
       (SELECT sum((d.xact_commit + d.xact_rollback)
                   / greatest(extract(epoch FROM clock_timestamp() - coalesce(d.stats_reset, a.stats_reset)), 1))
          FROM pg_stat_database d CROSS JOIN pg_stat_archiver a)::float8,
       coalesce(nullif(current_setting('autovacuum_vacuum_cost_limit')::int, -1),
                current_setting('vacuum_cost_limit')::int),
       -- In milliseconds, which current_setting would tell with a unit.
       (SELECT coalesce(nullif(max(setting::float8) FILTER (WHERE name = 'autovacuum_vacuum_cost_delay'), -1),
                        max(setting::float8) FILTER (WHERE name = 'vacuum_cost_delay'))
          FROM pg_settings WHERE name IN ('autovacuum_vacuum_cost_delay', 'vacuum_cost_delay'))
  FROM (SELECT setting::bigint * 1024 FROM pg_settings WHERE name = 'maintenance_work_mem') AS maintenance(bytes)
 CROSS JOIN (SELECT nullif(setting::bigint, -1) * 1024 FROM pg_settings WHERE name = 'autovacuum_work_mem') AS autovacuum(bytes)

-- name: tables
SELECT c.oid, c.relkind::text, c.relpersistence::text, nullif(c.reltuples, -1)::float8,
       pg_stat_get_live_tuples(c.oid)::float8, pg_stat_get_dead_tuples(c.oid)::float8,
       pg_stat_get_tuples_updated(c.oid), pg_stat_get_tuples_deleted(c.oid), pg_stat_get_tuples_hot_updated(c.oid),
       pg_stat_get_tuples_fetched(c.oid), pg_stat_get_numscans(c.oid),
       coalesce(c.relallvisible::float8 / nullif(c.relpages, 0), 0),
       c.reloptions,
       greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)),
       pg_stat_get_last_autovacuum_time(c.oid)
  FROM unnest(%(oids)s::oid[]) AS wanted(oid)
  JOIN pg_class c USING (oid)

-- name: moved
-- From PostgreSQL 16 on.
SELECT oid, pg_stat_get_tuples_newpage_updated(oid) FROM unnest(%(oids)s::oid[]) AS wanted(oid)

-- name: indexes
-- Expressions as the server stores them, without where they stood in the statement. `names` are those of the tables,
-- where they are few.
WITH needed AS MATERIALIZED (
    SELECT conindid AS oid FROM pg_constraint WHERE conindid <> 0
),
-- What others build, a role without rights does not see: then all may be in the making.
in_build AS MATERIALIZED (
    SELECT wanted.oid FROM unnest(%(oids)s::oid[]) AS wanted(oid)
     WHERE EXISTS (SELECT FROM pg_stat_progress_create_index p
                    WHERE p.datname = current_database() AND coalesce(p.relid, wanted.oid) = wanted.oid)
),
owned AS MATERIALIZED (
    SELECT objid AS oid FROM pg_depend WHERE classid = 'pg_class'::regclass AND objsubid = 0 AND deptype = 'e'
)
SELECT i.indexrelid, i.indrelid, n.nspname, c.relname, am.amname,
       ARRAY(SELECT a.attname::text
               FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(number, place)
               LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number AND k.number <> 0
              WHERE place <= i.indnkeyatts ORDER BY place),
       string_to_array(i.indkey::text, ' '), string_to_array(i.indclass::text, ' '),
       ARRAY(SELECT coalesce(array_to_string(a.attoptions, ','), '') FROM pg_attribute a
              WHERE a.attrelid = i.indexrelid AND a.attnum BETWEEN 1 AND i.indnkeyatts ORDER BY a.attnum),
       string_to_array(i.indcollation::text, ' '), string_to_array(i.indoption::text, ' '),
       coalesce(regexp_replace(i.indexprs::text, ':location -?\d+', '', 'g'), ''),
       coalesce(regexp_replace(i.indpred::text, ':location -?\d+', '', 'g'), ''),
       -- PostgreSQL 14 has no NULLS NOT DISTINCT.
       i.indisunique, coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false), NOT i.indimmediate,
       i.indisexclusion, c.oid IN (SELECT oid FROM needed),
       i.indisreplident, i.indisclustered, c.relispartition OR c.oid IN (SELECT oid FROM owned),
       i.indisvalid AND i.indisready AND i.indislive, i.indrelid IN (SELECT oid FROM in_build), age(i.xmin),
       CASE WHEN current_setting('track_commit_timestamp')::bool THEN pg_xact_commit_timestamp(i.xmin) END,
       pg_stat_get_numscans(c.oid), pg_stat_get_tuples_returned(c.oid), pg_stat_get_tuples_fetched(c.oid),
       s.correlation::float8
  FROM unnest(%(oids)s::oid[]) AS wanted(oid)
  JOIN pg_index i ON i.indrelid = wanted.oid
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_class t ON t.oid = i.indrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_am am ON am.oid = c.relam
  LEFT JOIN pg_attribute first ON first.attrelid = i.indrelid AND first.attnum = i.indkey[0] AND i.indkey[0] <> 0
  LEFT JOIN (SELECT schemaname, tablename, attname, correlation FROM pg_stats
              WHERE NOT inherited AND (%(names)s::text[] IS NULL OR tablename = ANY (%(names)s::name[]))) s
         ON s.schemaname = n.nspname AND s.tablename = t.relname AND s.attname = first.attname
 ORDER BY i.indrelid, i.indexrelid

-- name: ages
-- Relations, system catalogs among them, of which the oldest row is near the limit from which on autovacuum comes to
-- freeze; or that have a limit of their own, which is lower then. A TOAST table without storage parameters has those of
-- its table. Of temporary tables the session, which the name of their schema tells from PostgreSQL 16 on.
SELECT coalesce(p.oid, c.oid), n.nspname, coalesce(p.relname, c.relname), p.oid IS NOT NULL, a.of, a.age, a.options, a.most, a.failsafe,
       c.relpages * current_setting('block_size')::bigint, c.relpersistence = 't',
       CASE WHEN c.relpersistence = 't' AND current_setting('server_version_num')::int >= 160000
            THEN pg_stat_get_backend_pid(coalesce(substring(n.nspname, '^pg_temp_(\d+)$'),
                                                  substring(own.nspname, '^pg_toast_temp_(\d+)$'))::int) END
  FROM pg_class c
  JOIN pg_namespace own ON own.oid = c.relnamespace
  LEFT JOIN pg_class p ON p.reltoastrelid = c.oid AND c.relkind = 't'
  JOIN pg_namespace n ON n.oid = coalesce(p.relnamespace, c.relnamespace)
 CROSS JOIN LATERAL (
     SELECT array_agg(o) FROM unnest(coalesce(c.reloptions, p.reloptions)) AS o
      WHERE starts_with(o, 'autovacuum_freeze_max_age=') OR starts_with(o, 'autovacuum_multixact_freeze_max_age=')
     ) AS given(options)
 CROSS JOIN LATERAL (
     -- As VACUUM has them: later than autovacuum comes at the least.
     SELECT greatest(current_setting('vacuum_failsafe_age')::bigint,
                     floor(current_setting('autovacuum_freeze_max_age')::bigint * 1.05)::bigint),
            greatest(current_setting('vacuum_multixact_failsafe_age')::bigint,
                     floor(current_setting('autovacuum_multixact_freeze_max_age')::bigint * 1.05)::bigint)
     ) AS failsafe(xids, multixacts)
 CROSS JOIN LATERAL (VALUES
     ('transactions', age(c.relfrozenxid), given.options, current_setting('autovacuum_freeze_max_age')::bigint,
      failsafe.xids),
     ('multixacts', mxid_age(c.relminmxid), given.options, current_setting('autovacuum_multixact_freeze_max_age')::bigint,
      failsafe.multixacts)) AS a(of, age, options, most, failsafe)
 WHERE c.relkind IN ('r', 'm', 't') AND c.relfrozenxid <> '0'::xid AND c.relminmxid <> '0'::xid
   AND (%(oids)s::oid[] IS NULL OR coalesce(p.oid, c.oid) = ANY (%(oids)s::oid[]))
   AND (a.age >= %(share)s * a.most OR a.options IS NOT NULL)

-- name: databases
-- This one near its limit, as its tables; the others past it.
SELECT datname, a.of, a.age, a.most, a.failsafe
  FROM pg_database
 CROSS JOIN LATERAL (
     -- As VACUUM has them: later than autovacuum comes at the least.
     SELECT greatest(current_setting('vacuum_failsafe_age')::bigint,
                     floor(current_setting('autovacuum_freeze_max_age')::bigint * 1.05)::bigint),
            greatest(current_setting('vacuum_multixact_failsafe_age')::bigint,
                     floor(current_setting('autovacuum_multixact_freeze_max_age')::bigint * 1.05)::bigint)
     ) AS failsafe(xids, multixacts)
 CROSS JOIN LATERAL (VALUES
     ('transactions', age(datfrozenxid), current_setting('autovacuum_freeze_max_age')::bigint, failsafe.xids),
     ('multixacts', mxid_age(datminmxid), current_setting('autovacuum_multixact_freeze_max_age')::bigint,
      failsafe.multixacts)) AS a(of, age, most, failsafe)
 WHERE a.age >= CASE WHEN datname = current_database() THEN %(share)s ELSE 1 END * a.most

-- name: vacuums
-- Of all databases; what a relation of another one is called cannot be seen from here. Columns differ between versions.
SELECT v.pid, v.datname, t.oid, n.nspname, t.relname,
       a.backend_type = 'autovacuum worker', a.query LIKE 'autovacuum: % (to prevent wraparound)',
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8, to_jsonb(v) - 'datname'
  FROM pg_stat_progress_vacuum v
  LEFT JOIN pg_stat_activity a ON a.pid = v.pid
  LEFT JOIN pg_class c ON c.oid = v.relid AND v.datname = current_database()
  LEFT JOIN pg_class p ON p.reltoastrelid = c.oid AND c.relkind = 't'
  LEFT JOIN pg_class t ON t.oid = coalesce(p.oid, c.oid)
  LEFT JOIN pg_namespace n ON n.oid = t.relnamespace
 ORDER BY v.pid
