-- name: clustering
-- The index that the table is clustered on (CLUSTER ON), with its access method and, where that is B-tree, its own order
-- as a sort list: an operator class that is not the default one by its operator, a collation that is not the column's own
-- by its name. Bits of indoption: 1 is DESC, 2 is NULLS FIRST. No order is told where an expression has a literal of a
-- user's type and its owner is not trusted: whoever reads the text runs what that type's name means by then.
SELECT c.relname, am.amname,
       CASE WHEN am.amname = 'btree' AND (%(trusted)s OR NOT EXISTS (
                SELECT FROM regexp_matches(i.indexprs::text, ':consttype (\d+)', 'g') AS m
                WHERE m[1]::bigint >= 16384 OR m[1]::bigint = 'unknown'::regtype::bigint)) THEN
       (SELECT string_agg(
                   pg_get_indexdef(i.indexrelid, k.position::int, false)
                   || CASE WHEN k.coll <> 0 AND k.coll IS DISTINCT FROM a.attcollation
                           THEN ' COLLATE ' || quote_ident(cn.nspname) || '.' || quote_ident(coll.collname) ELSE '' END
                   || CASE WHEN own.usual THEN CASE WHEN own.descending THEN ' DESC' ELSE '' END
                           ELSE ' USING OPERATOR(' || quote_ident(opn.nspname) || '.' || op.oprname || ')' END
                   || CASE WHEN own.usual AND own.descending = own.nulls_first THEN ''
                           WHEN own.nulls_first THEN ' NULLS FIRST' ELSE ' NULLS LAST' END,
                   ', ' ORDER BY k.position)
          FROM unnest(i.indkey::int2[], i.indclass::oid[], i.indcollation::oid[], i.indoption::int2[])
               WITH ORDINALITY AS k(attnum, opclass, coll, option, position)
          JOIN pg_opclass oc ON oc.oid = k.opclass
          JOIN pg_attribute ia ON ia.attrelid = i.indexrelid AND ia.attnum = k.position
          CROSS JOIN LATERAL (SELECT k.option & 1 <> 0 AS descending, k.option & 2 <> 0 AS nulls_first,
                                     oc.opcdefault AND oc.oid < 16384
                                     AND oc.opcintype = CASE ia.atttypid WHEN 'varchar'::regtype THEN 'text'::regtype
                                                        ELSE ia.atttypid END AS usual) own
          JOIN pg_amop o ON o.amopfamily = oc.opcfamily AND o.amopstrategy = CASE WHEN own.descending THEN 5 ELSE 1 END
                        AND o.amoplefttype = oc.opcintype AND o.amoprighttype = oc.opcintype
          JOIN pg_operator op ON op.oid = o.amopopr
          JOIN pg_namespace opn ON opn.oid = op.oprnamespace
          LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0
          LEFT JOIN pg_collation coll ON coll.oid = k.coll
          LEFT JOIN pg_namespace cn ON cn.oid = coll.collnamespace
         WHERE k.position <= i.indnkeyatts) END
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_am am ON am.oid = c.relam
 WHERE i.indrelid = %(oid)s AND i.indisclustered

-- name: column
-- What decides whether the rows can be sorted by ranges of a column: nothing where there is no such column, or where its
-- unquoted name means something else to the parser (user, current_date). The types are those of which a value's text
-- means the same under any setting, and whose default operator class is the server's own.
SELECT format_type(a.atttypid, -1),
       CASE WHEN coll.oid IS NOT NULL THEN quote_ident(cn.nspname) || '.' || quote_ident(coll.collname) END,
       a.atttypid::regtype::text IN ('smallint', 'integer', 'bigint', 'oid', 'numeric', 'real', 'double precision', 'date',
                                     'timestamp without time zone', 'timestamp with time zone', 'uuid', 'bytea',
                                     'text', 'character varying', 'character')
           -- Of unknown encoding, a text is no text to us.
           AND (coll.oid IS NULL OR coll.collisdeterministic AND current_setting('server_encoding') <> 'SQL_ASCII'),
       s.correlation,
       coalesce(s.histogram_bounds::text::text[], '{}') || coalesce(s.most_common_vals::text::text[], '{}')
  FROM pg_attribute a
  LEFT JOIN pg_collation coll ON coll.oid = a.attcollation
  LEFT JOIN pg_namespace cn ON cn.oid = coll.collnamespace
  -- By the name as it was given, see `indexes.effort`.
  LEFT JOIN pg_stats s ON s.schemaname = %(schema)s AND s.tablename = %(name)s AND s.attname = %(column)s AND NOT s.inherited
 WHERE a.attrelid = %(oid)s AND a.attname = %(column)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
   AND (%(quoted)s OR NOT EXISTS (SELECT FROM pg_get_keywords() k WHERE k.word = a.attname AND k.catcode <> 'U'))

-- name: index
-- An index by which a range of the column can be read by itself: the default operator class of the column's type, and its
-- own collation, so that the operators of the ranges are the index's.
SELECT EXISTS (
    SELECT FROM pg_index i
      JOIN pg_class c ON c.oid = i.indexrelid
      JOIN pg_am am ON am.oid = c.relam
      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
      JOIN pg_opclass oc ON oc.oid = i.indclass[0]
     WHERE i.indrelid = %(oid)s AND a.attname = %(column)s AND am.amname = 'btree'
       AND i.indisvalid AND i.indisready AND i.indislive AND i.indpred IS NULL
       AND oc.opcdefault AND oc.oid < 16384
       AND oc.opcintype = CASE a.atttypid WHEN 'varchar'::regtype THEN 'text'::regtype ELSE a.atttypid END
       AND i.indcollation[0] = a.attcollation)

-- name: prepared
SELECT parameter_types = '{}' FROM pg_prepared_statements WHERE name = 'pglean_order'

-- name: settings_of_ranges
-- A range is read by the index, whatever the planner thinks of the statistics: not the whole table for each.
SELECT set_config('enable_seqscan', 'off', true)

-- name: settings_of_sort
-- The heap is read as it is, since an index that is damaged may lack rows. (Bitmaps serve whatever the order's expressions
-- look up elsewhere.) The sort gets the memory that an index build would get.
SELECT set_config('enable_indexscan', 'off', true), set_config('enable_indexonlyscan', 'off', true),
       set_config('work_mem', current_setting('maintenance_work_mem'), true)

-- name: settings_of_count
SELECT set_config('enable_indexscan', 'off', true), set_config('enable_indexonlyscan', 'off', true)
