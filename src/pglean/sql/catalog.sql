-- Reading the catalog. Everything is qualified; sessions of ours have search_path = pg_catalog, so that format_type,
-- pg_get_indexdef and regclass print qualified names of whatever is not the server's own. The columns of `table`, `columns`,
-- `indexes`, `toast` and `keys` are called as the attributes in table.py that they become.

-- name: table
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       r.rolname AS owner, r.rolsuper AS owner_is_superuser, am.amname AS method,
       coalesce(am.amhandler = 'heap_tableam_handler(internal)'::regprocedure, false) AS is_heap, ts.spcname AS tablespace,
       coalesce(c.reloptions, '{}') AS options,
       CASE WHEN c.relkind IN ('r', 'm', 't') THEN pg_table_size(c.oid) - coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0)
            ELSE 0 END AS heap_bytes,
       nullif(c.reltuples, -1)::bigint AS estimated_rows,
       c.oid < 16384 OR n.nspname IN ('pg_catalog', 'information_schema', 'pg_toast', 'pglean') AS is_system,
       nullif(c.reltoastrelid, 0) AS toast_oid
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_roles r ON r.oid = c.relowner
  LEFT JOIN pg_am am ON am.oid = c.relam
  LEFT JOIN pg_tablespace ts ON ts.oid = c.reltablespace
 WHERE c.oid = %(oid)s

-- name: columns
SELECT a.attnum AS number, a.attname AS name,
       CASE WHEN a.attisdropped THEN '' ELSE format_type(a.atttypid, a.atttypmod) END AS type_sql,
       CASE WHEN a.attcollation <> 0 AND NOT a.attisdropped
            THEN (SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname)
                    FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace
                   WHERE co.oid = a.attcollation) END AS collation_sql,
       a.attstorage::text AS storage, coalesce(t.typstorage::text, a.attstorage::text) AS type_storage,
       a.attcompression::text AS compression, a.attisdropped AS dropped, a.attgenerated::text AS generated,
       -- Since 18 a NOT NULL constraint may be NOT VALID: attnotnull is set, yet old rows may hold NULL.
       a.attnotnull AND NOT EXISTS (
           SELECT FROM pg_constraint con
            WHERE con.conrelid = a.attrelid AND con.contype = 'n' AND NOT con.convalidated AND con.conkey = ARRAY[a.attnum]) AS not_null,
       coalesce(t.typlen = -1 AND t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler(internal)'::regprocedure, false) AS is_array,
       a.atttypid AS type_oid, CASE WHEN a.attisdropped THEN '' ELSE format_type(a.atttypid, -1) END AS bare_type_sql, a.attlen::int AS width
  FROM pg_attribute a
  LEFT JOIN pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = %(oid)s AND a.attnum > 0
 ORDER BY a.attnum

-- name: indexes
SELECT i.indexrelid AS oid, c.relname AS name, n.nspname AS schema, am.amname AS method,
       i.indisunique AS unique, i.indisprimary AS primary, i.indisexclusion AS exclusion,
       i.indisvalid AND i.indisready AND i.indislive AS valid,
       -- Only a Var with attribute number 0 is the row as a whole; pg_depend knows it as the table, as it does other things.
       coalesce(i.indexprs::text ~ ':varattno 0 ' OR i.indpred::text ~ ':varattno 0 ', false) AS whole_row,
       -- CREATE INDEX reads literals before it becomes the owner, and reading one of a domain's values runs its checks.
       -- Enums, base types and arrays of these have none. One of no type yet (705, unknown, as in ROW('x')) is printed bare, and
       -- gets the type that the function it is given to asks for by then.
       ARRAY(SELECT DISTINCT format_type(t.oid, NULL)
               FROM regexp_matches(concat(i.indexprs, i.indpred), ':consttype (\d+)', 'g') AS m
               JOIN pg_type t ON t.oid = m[1]::bigint::oid
               LEFT JOIN pg_type e ON e.oid = t.typelem
              WHERE t.oid = 'unknown'::regtype
                 OR t.oid >= 16384 AND NOT (t.typtype IN ('b', 'e') AND (e.oid IS NULL OR e.typtype IN ('b', 'e')))) AS foreign_literals,
       ts.spcname AS tablespace, coalesce(pg_relation_size(i.indexrelid), 0) AS bytes
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_am am ON am.oid = c.relam
  LEFT JOIN pg_tablespace ts ON ts.oid = c.reltablespace
 WHERE i.indrelid = %(oid)s
 ORDER BY i.indexrelid

-- name: toast
SELECT c.oid, i.indexrelid AS index_oid, coalesce(c.reloptions, '{}') AS options, coalesce(pg_total_relation_size(c.oid), 0) AS bytes
  FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid AND i.indisvalid
 WHERE c.oid = %(oid)s

-- name: keys
-- Indexes that tell rows apart: unique, whole (no predicate, no expression), valid, over columns that are never NULL.
-- INCLUDE columns are beyond indnkeyatts and are no part of the key. A temporal key (GiST, WITHOUT OVERLAPS)
-- qualifies as well: equal ranges overlap, and empty ones are refused by the constraint. The primary key comes first,
-- then the replica identity, then what can be enforced at once, then the narrowest.
SELECT i.indexrelid AS index_oid, c.relname AS index_name,
       array_agg(a.attnum::int ORDER BY k.position) AS number,
       array_agg(a.attname::text ORDER BY k.position) AS name,
       array_agg(a.atttypid ORDER BY k.position) AS type_oid,
       array_agg(ty.oid ORDER BY k.position) AS base_oid,
       -- Without its modifier: a key is recorded as it is, also once somebody has made its column wider.
       array_agg(format_type(coalesce(base.oid, a.atttypid), -1) ORDER BY k.position) AS type_sql,
       array_agg(CASE WHEN coll.oid IS NOT NULL THEN quote_ident(cn.nspname) || '.' || quote_ident(coll.collname) END
                 ORDER BY k.position) AS collation_sql,
       array_agg('OPERATOR(' || quote_ident(opn.nspname) || '.' || op.oprname || ')' ORDER BY k.position) AS equality_sql,
       array_agg(ty.typtype IN ('b', 'e') AND ty.typcategory <> 'A' AND (ty.oid < 16384 OR ty.typtype = 'e')
                 AND EXISTS (SELECT FROM pg_amop h
                              JOIN pg_opclass hc ON hc.opcfamily = h.amopfamily AND hc.opcmethod = 405 AND hc.opcdefault
                              WHERE h.amopmethod = 405 AND h.amopopr = op.oid) ORDER BY k.position) AS hashable,
       array_agg(op.oid < 16384 AND ty.oid < 16384 AND ty.typtype = 'b' AND ty.typcategory <> 'A' ORDER BY k.position) AS builtin
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_am am ON am.oid = c.relam
  CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[], i.indcollation::oid[])
       WITH ORDINALITY AS k(attnum, opclass, coll, position)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
  JOIN pg_opclass oc ON oc.oid = k.opclass
  LEFT JOIN LATERAL (
      WITH RECURSIVE up AS (
          SELECT t.oid, t.typtype, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
          UNION ALL
          SELECT t.oid, t.typtype, t.typbasetype FROM up JOIN pg_type t ON t.oid = up.typbasetype WHERE up.typtype = 'd')
      SELECT up.oid FROM up WHERE up.typtype <> 'd' AND up.oid <> a.atttypid) base ON true
  JOIN pg_type ty ON ty.oid = coalesce(base.oid, a.atttypid)
  LEFT JOIN pg_collation coll ON coll.oid = k.coll
  LEFT JOIN pg_namespace cn ON cn.oid = coll.collnamespace
  -- Equality: strategy 3 of the B-tree family. A GiST index of a temporal key has none: there the default B-tree class of
  -- the type, or of the one that its operator class takes it for (varchar as text, int4range as anyrange).
  LEFT JOIN LATERAL (
      SELECT o.amopopr FROM pg_opclass bc JOIN pg_amop o ON o.amopfamily = bc.opcfamily AND o.amopstrategy = 3
                                            AND o.amoplefttype = bc.opcintype AND o.amoprighttype = bc.opcintype
       WHERE CASE WHEN am.amname = 'btree' THEN bc.oid = k.opclass
                  ELSE bc.opcmethod = 403 AND bc.opcdefault AND bc.opcintype IN (ty.oid, oc.opcintype) END
       ORDER BY bc.opcintype = ty.oid DESC
       LIMIT 1) eq ON true
  LEFT JOIN pg_operator op ON op.oid = eq.amopopr
  LEFT JOIN pg_namespace opn ON opn.oid = op.oprnamespace
 WHERE i.indrelid = %(oid)s AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
   AND i.indisvalid AND i.indisready AND i.indislive
   AND k.position <= i.indnkeyatts
 GROUP BY i.indexrelid, c.relname, i.indisprimary, i.indisreplident, i.indimmediate, i.indnkeyatts, am.amname
HAVING bool_and(op.oid IS NOT NULL)
   AND array_agg(a.attnum::int) <@ %(not_null)s::int[]
 ORDER BY i.indisprimary DESC, i.indisreplident DESC, am.amname = 'btree' DESC, i.indimmediate DESC, i.indnkeyatts, i.indexrelid
 LIMIT 1

-- name: fingerprint
-- What a run relies on, in parts, so that an error can say which of them changed. Columns appear with all that decides
-- how a tuple is read or written; indexes with all that decides what a twin must be; not with what may change freely
-- (storage parameters, statistics targets, defaults, constraints' names, comments, grants).
SELECT jsonb_build_object(
    'name', n.nspname || '.' || c.relname,
    'storage file', jsonb_build_array(c.relfilenode, c.reltablespace, c.relam, c.relpersistence, c.relkind, c.reltoastrelid),
    'owner', c.relowner,
    'columns', (SELECT jsonb_agg(jsonb_build_array(a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull,
                                  a.attstorage, a.attcompression, a.attgenerated, a.attisdropped, a.atthasmissing) ORDER BY a.attnum)
                  FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0),
    'indexes', (SELECT jsonb_agg(jsonb_build_array(i.indexrelid, ic.relfilenode, ic.reltablespace, ic.reloptions, i.indisunique,
                                  i.indisexclusion, i.indisvalid, i.indisready, i.indislive, i.indnkeyatts, i.indkey::text) ORDER BY i.indexrelid)
                  FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid WHERE i.indrelid = c.oid))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = %(oid)s

-- name: blocks
SELECT pg_relation_size(%(oid)s::oid::regclass) / current_setting('block_size')::bigint

-- name: schema_owner
-- Asked of the catalog alone: a schema of this name may have been put there to be read by an administrator.
SELECT r.rolname,
       r.rolsuper AND EXISTS (SELECT FROM pg_class c JOIN pg_roles cr ON cr.oid = c.relowner
                               WHERE c.relnamespace = n.oid AND c.relname = 'version' AND c.relkind = 'r' AND cr.rolsuper),
       EXISTS (SELECT FROM aclexplode(n.nspacl) g WHERE g.grantee <> n.nspowner)
  FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner
 WHERE n.nspname = 'pglean'

-- name: exists
SELECT EXISTS (SELECT FROM pg_class WHERE oid = %(oid)s)
