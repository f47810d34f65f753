-- name: effort
-- How long each index takes to build, compared with the others: the rows that are sorted, and far more where they do not
-- lie in the index's order already (correlation of its first column, where ANALYZE knows it). Statistics are found by the
-- table's name as it was given: one that comes out of a join would have the view put together for all tables there are.
SELECT i.indexrelid,
       greatest(c.reltuples, 1) * (4 - 3 * coalesce(abs(s.correlation), 0))
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
  LEFT JOIN pg_stats s ON s.schemaname = %(schema)s AND s.tablename = %(name)s AND s.attname = a.attname AND NOT s.inherited
 WHERE i.indrelid = %(oid)s

-- name: definitions
-- What follows USING in the definition of each index: method, columns, options, predicate. The text before it is exactly
-- known under our search path; NULL where it is not so. With it what the text does not show or may show in two ways.
SELECT i.indexrelid,
       CASE WHEN starts_with(d.definition, d.prefix) THEN substr(d.definition, length(d.prefix) + 1) END,
       jsonb_build_array(i.indkey::text, i.indclass::text, i.indcollation::text, i.indoption::text, i.indnkeyatts, c.relam::bigint),
       EXISTS (SELECT FROM regexp_matches(concat(i.indexprs, i.indpred), ':consttype (\d+)', 'g') AS m
                WHERE m[1]::bigint >= 16384 OR m[1]::bigint = 'unknown'::regtype::bigint)
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_class t ON t.oid = i.indrelid
  JOIN pg_namespace n ON n.oid = t.relnamespace
  CROSS JOIN LATERAL (
      SELECT pg_get_indexdef(i.indexrelid) AS definition,
             'CREATE ' || CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END || 'INDEX ' || quote_ident(c.relname)
             || ' ON ' || CASE WHEN c.relkind = 'I' THEN 'ONLY ' ELSE '' END
             || quote_ident(n.nspname) || '.' || quote_ident(t.relname) || ' USING ' AS prefix
      -- Or the condition below would be asked of all indexes of the database.
      OFFSET 0) d
    -- NULL where it was dropped since this query began.
 WHERE i.indexrelid = ANY (%(oids)s::oid[]) AND d.definition IS NOT NULL
