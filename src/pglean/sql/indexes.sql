-- name: effort
-- How long each index takes to build, compared with the others: the rows that are sorted, and far more where they do not
-- lie in the index's order already (correlation of its first column, where ANALYZE knows it).
SELECT i.indexrelid,
       greatest(c.reltuples, 1) * (4 - 3 * coalesce(abs(s.correlation), 0))
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_class t ON t.oid = i.indrelid
  JOIN pg_namespace n ON n.oid = t.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
  LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = t.relname AND s.attname = a.attname AND NOT s.inherited
 WHERE i.indrelid = %(oid)s
