-- What the server's statistics say of tables and indexes; each for a whole database, or for certain tables. Of pg_stats
-- the role sees what it may read. No table is read; sizes are read under ACCESS SHARE, one relation after the other, but
-- where somebody has a relation for himself, or waits for that: there they are those of its last VACUUM or ANALYZE.

-- name: tables
-- Tables that hold rows; of those that are named, a partitioned one means its partitions. A partition that several of these
-- mean is one of the topmost.
WITH RECURSIVE asked AS (
    SELECT c.oid, c.relkind, c.oid AS top, 0 AS depth FROM pg_class c WHERE c.oid = ANY (%(oids)s::oid[])
    UNION ALL
    SELECT c.oid, c.relkind, asked.top, asked.depth + 1
      FROM asked JOIN pg_inherits i ON i.inhparent = asked.oid JOIN pg_class c ON c.oid = i.inhrelid
     WHERE asked.relkind = 'p'),
named AS MATERIALIZED (SELECT DISTINCT ON (oid) oid, nullif(top, oid) AS top FROM asked ORDER BY oid, depth DESC),
taken AS MATERIALIZED (
    SELECT l.relation FROM pg_locks l
     WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())),
block AS MATERIALIZED (SELECT current_setting('block_size')::bigint AS bytes)
SELECT c.oid, n.nspname, c.relname, r.rolname, r.rolsuper, root.name,
       CASE WHEN %(oids)s::oid[] IS NULL THEN root.name WHEN top.oid IS NOT NULL THEN ARRAY[topn.nspname::text, top.relname::text] END,
       am.amhandler = 'heap_tableam_handler(internal)'::regprocedure,
       coalesce(pg_size.heap, c.relpages * block.bytes),
       c.reloptions,
       nullif(c.reltuples, -1)::float8,
       CASE WHEN counted.heap THEN pg_stat_get_dead_tuples(c.oid)::float8 END,
       pg_stat_get_mod_since_analyze(c.oid)::float8, -- What a session writes before its own ANALYZE is added once more to the live rows when it ends: so no more than what
       -- was inserted and not deleted, or as the file has grown since rows were counted.
       CASE WHEN counted.heap
            THEN least(pg_stat_get_live_tuples(c.oid),
                       greatest(pg_stat_get_tuples_inserted(c.oid) - pg_stat_get_tuples_deleted(c.oid),
                                c.reltuples * pg_size.heap / block.bytes / nullif(c.relpages, 0)))::float8 END,
       has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid),
       pg_size.heap IS NOT NULL,
       t.oid, coalesce(pg_size.toast, t.relpages * block.bytes), coalesce(pg_size.toast_index, ti.relpages * block.bytes),
       CASE WHEN counted.toast THEN pg_stat_get_live_tuples(t.oid)::float8 ELSE nullif(t.reltuples, -1)::float8 END,
       CASE WHEN counted.toast THEN pg_stat_get_dead_tuples(t.oid)::float8 END,
       pg_size.toast IS NOT NULL AND pg_size.toast_index IS NOT NULL
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_roles r ON r.oid = c.relowner
  LEFT JOIN pg_am am ON am.oid = c.relam
  LEFT JOIN pg_class t ON t.oid = c.reltoastrelid AND c.reltoastrelid <> 0
  LEFT JOIN pg_index i ON i.indrelid = t.oid AND i.indisvalid
  LEFT JOIN pg_class ti ON ti.oid = i.indexrelid
  LEFT JOIN named ON named.oid = c.oid
  LEFT JOIN pg_class top ON top.oid = named.top
  LEFT JOIN pg_namespace topn ON topn.oid = top.relnamespace
 CROSS JOIN block
 CROSS JOIN LATERAL (
     SELECT CASE WHEN c.relispartition THEN (
         SELECT ARRAY[pn.nspname::text, p.relname::text] FROM pg_class p JOIN pg_namespace pn ON pn.oid = p.relnamespace
          WHERE p.oid = pg_partition_root(c.oid)) END) AS root(name)
 CROSS JOIN LATERAL (
     SELECT CASE WHEN c.oid NOT IN (SELECT relation FROM taken) THEN pg_relation_size(c.oid) END,
            CASE WHEN t.oid NOT IN (SELECT relation FROM taken) THEN pg_relation_size(t.oid) END,
            CASE WHEN ti.oid NOT IN (SELECT relation FROM taken) THEN pg_relation_size(ti.oid) END)
       AS pg_size(heap, toast, toast_index)
 -- The counters say something once they have been set by a VACUUM or ANALYZE; of a TOAST table, once they have counted.
 CROSS JOIN LATERAL (
     SELECT coalesce(pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid),
                     pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)) IS NOT NULL,
            pg_stat_get_tuples_inserted(t.oid) > 0
            OR coalesce(pg_stat_get_last_vacuum_time(t.oid), pg_stat_get_last_autovacuum_time(t.oid)) IS NOT NULL)
       AS counted(heap, toast)
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
   AND CASE WHEN %(oids)s::oid[] IS NOT NULL THEN named.oid IS NOT NULL
            ELSE c.oid >= 16384 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'pglean')
                 AND (%(schemas)s::text[] IS NULL OR n.nspname = ANY (%(schemas)s::text[])) END

-- name: columns
-- Virtual columns and dropped ones are NULL in the rows that are written. `names` are those of the tables, where they are few.
SELECT a.attrelid, a.attname, a.attlen::int, strpos('cs.i...d', a.attalign::text), a.attstorage <> 'p',
       a.attisdropped OR a.attgenerated = 'v', a.attisdropped OR a.atthasmissing,
       -- Of fixed length and NOT NULL: nothing has to be guessed.
       coalesce(s.null_frac, CASE WHEN a.attnotnull AND a.attlen > 0 THEN 0 END)::float8,
       coalesce(s.avg_width, CASE WHEN a.attlen > 0 THEN a.attlen END)::float8, s.n_distinct::float8,
       -- ANALYZE looks at as many rows as the largest of these asks for.
       CASE WHEN a.attisdropped THEN 0 ELSE 300 * coalesce(nullif(a.attstattarget, -1), target.rows) END
  FROM unnest(%(oids)s::oid[]) AS wanted(oid)
 CROSS JOIN (SELECT current_setting('default_statistics_target')::int) AS target(rows)
  JOIN pg_class c USING (oid)
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
  LEFT JOIN (SELECT schemaname, tablename, attname, null_frac, avg_width, n_distinct FROM pg_stats
              WHERE NOT inherited AND (%(names)s::text[] IS NULL OR tablename = ANY (%(names)s::name[]))) s
         ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname
 ORDER BY a.attrelid, a.attnum

-- name: indexes
-- What is being built or dropped has no say. Of partial indexes the share is by the server's counts.
WITH taken AS MATERIALIZED (
    SELECT l.relation FROM pg_locks l
     WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
SELECT i.indrelid, i.indexrelid, c.relname, am.amname,
       coalesce(size.bytes, c.relpages * current_setting('block_size')::bigint), size.bytes IS NOT NULL,
       c.reloptions,
       CASE WHEN i.indpred IS NULL THEN 1
            WHEN t.reltuples > 0 AND c.reltuples >= 0 THEN least(c.reltuples / t.reltuples, 1) END::float8,
       i.indisunique,
       i.indnatts = i.indnkeyatts AND NOT i.indisunique
       AND NOT EXISTS (
           SELECT FROM unnest(i.indclass::oid[], i.indcollation::oid[]) AS k(opclass, coll)
             JOIN pg_opclass oc ON oc.oid = k.opclass
            WHERE k.coll IN (SELECT oid FROM pg_collation WHERE NOT collisdeterministic)
               -- Support function 4 says whether equal values are the same bytes.
               OR NOT EXISTS (SELECT FROM pg_amproc p WHERE p.amprocfamily = oc.opcfamily AND p.amprocnum = 4
                               AND p.amproclefttype = oc.opcintype AND p.amprocrighttype = oc.opcintype)),
       -- Extended statistics of exactly these columns.
       (SELECT d.keys
          FROM pg_stats_ext x
         CROSS JOIN LATERAL (SELECT x.n_distinct::text::jsonb) AS j(said)
         -- {"1, 2": 30}; since 19 [{"attributes": [1, 2], "ndistinct": 30}].
         CROSS JOIN LATERAL (
             SELECT key, value::float8 FROM jsonb_each_text(CASE jsonb_typeof(j.said) WHEN 'object' THEN j.said ELSE '{}' END)
             UNION ALL
             SELECT e ->> 'attributes', (e ->> 'ndistinct')::float8
               FROM jsonb_array_elements(CASE jsonb_typeof(j.said) WHEN 'array' THEN j.said ELSE '[]' END) AS e) AS d(columns, keys)
         CROSS JOIN LATERAL (SELECT string_to_array(translate(d.columns, '[] ', ''), ',')::int2[]) AS s(columns)
         WHERE i.indnkeyatts > 1 AND i.indexprs IS NULL AND x.n_distinct IS NOT NULL
           AND x.schemaname = tn.nspname AND x.tablename = t.relname
           AND s.columns @> i.indkey::int2[] AND s.columns <@ i.indkey::int2[]
         LIMIT 1)
  FROM unnest(%(oids)s::oid[]) AS wanted(oid)
  JOIN pg_index i ON i.indrelid = wanted.oid AND i.indislive
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_am am ON am.oid = c.relam
  JOIN pg_class t ON t.oid = i.indrelid
  JOIN pg_namespace tn ON tn.oid = t.relnamespace
 CROSS JOIN LATERAL (
     SELECT CASE WHEN c.oid NOT IN (SELECT relation FROM taken) THEN pg_relation_size(c.oid) END) AS size(bytes)
 ORDER BY i.indrelid, i.indexrelid

-- name: keys
-- Columns of B-trees, with the statistics of the table's column, or of the expression.
SELECT a.attrelid, a.attname, a.attlen::int, strpos('cs.i...d', a.attalign::text), a.attstorage <> 'p',
       coalesce(s.null_frac, CASE WHEN ta.attnotnull AND a.attlen > 0 THEN 0 END)::float8,
       coalesce(s.avg_width, CASE WHEN a.attlen > 0 THEN a.attlen END)::float8, s.n_distinct::float8,
       CASE WHEN NOT i.indisunique THEN s.most_common_freqs::float8[] END
  FROM unnest(%(oids)s::oid[]) AS wanted(oid)
  JOIN pg_index i ON i.indrelid = wanted.oid AND i.indislive
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_am am ON am.oid = c.relam AND am.amname = 'btree'
  JOIN pg_class t ON t.oid = i.indrelid
  JOIN pg_namespace n ON n.oid = t.relnamespace
  JOIN pg_attribute a ON a.attrelid = i.indexrelid AND a.attnum > 0
  LEFT JOIN pg_attribute ta ON ta.attrelid = i.indrelid AND ta.attnum = i.indkey[a.attnum - 1] AND ta.attnum <> 0
  LEFT JOIN (SELECT schemaname, tablename, attname, null_frac, avg_width, n_distinct, most_common_freqs FROM pg_stats
              WHERE NOT inherited AND (%(names)s::text[] IS NULL OR tablename = ANY (%(names)s::name[]))) s
         ON s.schemaname = n.nspname
        AND s.tablename = CASE WHEN ta.attnum IS NULL THEN c.relname ELSE t.relname END
        AND s.attname = CASE WHEN ta.attnum IS NULL THEN a.attname ELSE ta.attname END
 ORDER BY a.attrelid, a.attnum

-- name: extension
-- The functions of pgstattuple that the role may call, and its schema. Only what superusers own: anybody else could have put
-- something else in place.
SELECT n.nspname, p.proname
  FROM pg_extension e
  JOIN pg_roles er ON er.oid = e.extowner AND er.rolsuper
  JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
                  AND d.classid = 'pg_proc'::regclass
  JOIN pg_proc p ON p.oid = d.objid AND p.pronargs = 1 AND p.proargtypes[0] = 'regclass'::regtype
  JOIN pg_roles pr ON pr.oid = p.proowner AND pr.rolsuper
  JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'c'
  JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE e.extname = 'pgstattuple' AND p.proname IN ('pgstattuple', 'pgstattuple_approx', 'pgstatindex')
   AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')

-- name: has_extension
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pgstattuple')

-- name: free_space
-- The function of pg_freespacemap that tells the free space of a block, under the conditions of `extension`, where the
-- table has a free-space map.
SELECT n.nspname, p.proname
  FROM pg_extension e
  JOIN pg_roles er ON er.oid = e.extowner AND er.rolsuper
  JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
                  AND d.classid = 'pg_proc'::regclass
  JOIN pg_proc p ON p.oid = d.objid AND p.proname = 'pg_freespace' AND p.pronargs = 2
                AND p.proargtypes[0] = 'regclass'::regtype AND p.proargtypes[1] = 'int8'::regtype
  JOIN pg_roles pr ON pr.oid = p.proowner AND pr.rolsuper
  JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'c'
  JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE e.extname = 'pg_freespacemap' AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
   AND pg_relation_size(%(oid)s::oid, 'fsm') > 0

-- name: rights
-- Whether the role may find the table by its name, read all of it, and lock it; whether row security hides rows from it.
SELECT has_schema_privilege(c.relnamespace, 'USAGE'), has_table_privilege(c.oid, 'SELECT'),
       has_table_privilege(c.oid, %(privileges)s::text), row_security_active(c.oid)
  FROM pg_class c
 WHERE c.oid = %(oid)s

-- name: owners_code
-- What of the table's owner would run, with our rights, when a statement on the table is planned; see guard.py.
SELECT why FROM (
    SELECT 'an index on an expression, or a partial one' WHERE EXISTS (
        SELECT FROM pg_index WHERE indrelid = %(oid)s AND (indexprs IS NOT NULL OR indpred IS NOT NULL))
    UNION ALL
    SELECT 'statistics on an expression' WHERE EXISTS (
        SELECT FROM pg_statistic_ext WHERE stxrelid = %(oid)s AND stxexprs IS NOT NULL)
    UNION ALL
    SELECT 'row security' WHERE EXISTS (SELECT FROM pg_class WHERE oid = %(oid)s AND relrowsecurity)
    UNION ALL
    SELECT 'a virtual column' WHERE EXISTS (SELECT FROM pg_attribute WHERE attrelid = %(oid)s AND attgenerated = 'v')
    UNION ALL
    SELECT 'a rule' WHERE EXISTS (SELECT FROM pg_rewrite WHERE ev_class = %(oid)s)) AS reasons(why)
 LIMIT 1
