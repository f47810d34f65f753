-- Which tables are meant. Nothing here waits for a lock on a table but `sizes`, which says how.

-- name: databases
-- A negative limit other than -1 marks one whose DROP DATABASE did not come to its end.
SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND datconnlimit >= -1 ORDER BY datname

-- name: tables
-- Every table that holds rows, partitions and inheritance children among them; of certain schemas, where these are given.
SELECT c.oid, n.nspname, c.relname, c.relkind::text
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't'
   AND c.oid >= 16384 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'pglean')
   AND (%(schemas)s::text[] IS NULL OR n.nspname = ANY (%(schemas)s::text[]))
   AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
                      AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
                      AND e.extname = ANY (%(extensions)s::text[]))

-- name: matching
-- Where the pattern names no schema, tables that the search path finds: no other relation of an earlier schema is in the
-- way. The path is that of the role, not of this session.
SELECT c.oid, n.nspname, c.relname, c.relkind::text
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
   AND c.oid >= 16384 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'pglean')
   AND c.relname ~ %(name)s::text COLLATE "default"
   AND CASE WHEN %(schema)s::text IS NOT NULL THEN n.nspname ~ %(schema)s::text COLLATE "default"
            ELSE array_position(%(path)s::text[], n.nspname::text) IS NOT NULL
                 AND NOT EXISTS (
                     SELECT FROM pg_class o JOIN pg_namespace s ON s.oid = o.relnamespace
                      WHERE o.relname = c.relname
                        AND array_position(%(path)s::text[], s.nspname::text) < array_position(%(path)s::text[], n.nspname::text))
       END

-- name: family
-- A table with all that inherits from it, or its partitions, at any depth; each once, however many parents it has.
WITH RECURSIVE family AS (
    SELECT %(root)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM family JOIN pg_inherits i ON i.inhparent = family.oid)
SELECT c.oid, n.nspname, c.relname, c.relkind::text
  FROM family
  JOIN pg_class c USING (oid)
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = %(root)s::oid OR c.relkind IN ('r', 'p', 'f')

-- name: schemas
-- The schema of that very name where there is one, as pg_repack reads it; else those that match the pattern.
SELECT nspname FROM pg_namespace
 WHERE CASE WHEN EXISTS (SELECT FROM pg_namespace WHERE nspname = %(literal)s::text) THEN nspname = %(literal)s::text
            ELSE nspname ~ %(pattern)s::text COLLATE "default" END
 ORDER BY nspname

-- name: extensions
SELECT extname FROM pg_extension

-- name: sizes
-- Bytes of the heap, and of all that belongs to the table. The server reads them under ACCESS SHARE, one relation after
-- the other. Where somebody has a relation for himself, or waits for that, they are those of its last VACUUM or ANALYZE:
-- nobody is queued behind. With `estimated`, all are.
WITH taken AS MATERIALIZED (
    SELECT l.relation FROM pg_locks l
     WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())),
owners AS MATERIALIZED (
    SELECT relation FROM taken
    UNION SELECT i.indrelid FROM taken JOIN pg_index i ON i.indexrelid = taken.relation),
avoided AS MATERIALIZED (
    SELECT relation FROM owners
    UNION SELECT c.oid FROM owners JOIN pg_class c ON c.reltoastrelid = owners.relation)
SELECT c.oid,
       CASE WHEN seen.estimated THEN c.relpages * block.bytes ELSE pg_relation_size(c.oid) END,
       CASE WHEN seen.estimated
            THEN block.bytes * (SELECT sum(part.relpages) FROM pg_class part
                                 WHERE part.oid = ANY (ARRAY(SELECT c.oid UNION ALL SELECT c.reltoastrelid
                                       UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid = c.oid
                                       UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid = c.reltoastrelid)))
            ELSE pg_total_relation_size(c.oid) END
  FROM unnest(%(oids)s::oid[]) AS wanted(oid)
  JOIN pg_class c USING (oid)
 CROSS JOIN (SELECT current_setting('block_size')::bigint) AS block(bytes)
 CROSS JOIN LATERAL (SELECT %(estimated)s OR c.oid IN (SELECT relation FROM avoided)) AS seen(estimated)

-- name: live_bytes
-- What the rows of each need by the statistics, in full pages, with storage parameters; see checks.live_bytes. One that
-- held none when it was last looked at needs nothing; of one that was never looked at, nothing is known.
SELECT c.oid, c.reloptions, CASE WHEN c.reltuples = 0 THEN 0 ELSE c.reltuples * (28 + w.bytes) END::float8
  FROM unnest(%(oids)s::oid[]) AS wanted(oid)
  JOIN pg_class c USING (oid)
  LEFT JOIN (SELECT starelid, sum((1 - stanullfrac) * stawidth) AS bytes
               FROM pg_statistic WHERE NOT stainherit GROUP BY starelid) w ON w.starelid = c.oid
 WHERE c.reltuples > 0 AND w.bytes IS NOT NULL OR c.reltuples = 0 AND c.relpages > 0
