-- All of these run in one transaction that holds ACCESS EXCLUSIVE on the table and on the shadow.

-- name: predicate_locks
SELECT EXISTS (SELECT FROM pg_locks
                WHERE mode = 'SIReadLock' AND locktype IN ('page', 'tuple') AND relation = ANY (%(relations)s::oid[])
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))

-- name: files
UPDATE pg_catalog.pg_class AS c
   SET relfilenode = o.relfilenode, reltablespace = o.reltablespace,
       relpages = o.relpages, reltuples = o.reltuples, relallvisible = o.relallvisible,
       reltoastrelid = o.reltoastrelid, relfrozenxid = o.relfrozenxid, relminmxid = o.relminmxid,
       relam = o.relam, relrewrite = 0
  FROM unnest(%(mine)s::oid[], %(theirs)s::oid[]) AS pair(mine, theirs)
  JOIN pg_catalog.pg_class AS o ON o.oid = pair.theirs
 WHERE c.oid = pair.mine

-- name: files_18
UPDATE pg_catalog.pg_class AS c
   SET relfilenode = o.relfilenode, reltablespace = o.reltablespace,
       relpages = o.relpages, reltuples = o.reltuples, relallvisible = o.relallvisible, relallfrozen = o.relallfrozen,
       reltoastrelid = o.reltoastrelid, relfrozenxid = o.relfrozenxid, relminmxid = o.relminmxid,
       relam = o.relam, relrewrite = 0
  FROM unnest(%(mine)s::oid[], %(theirs)s::oid[]) AS pair(mine, theirs)
  JOIN pg_catalog.pg_class AS o ON o.oid = pair.theirs
 WHERE c.oid = pair.mine

-- name: methods
-- What an access method that is not the server's own is needed by.
UPDATE pg_catalog.pg_depend
   SET objid = CASE objid WHEN %(table)s THEN %(shadow)s ELSE %(table)s END
 WHERE classid = 'pg_catalog.pg_class'::regclass AND objid IN (%(table)s, %(shadow)s) AND objsubid = 0
   AND refclassid = 'pg_catalog.pg_am'::regclass

-- name: fillfactor
UPDATE pg_catalog.pg_class AS c
   SET reloptions = ARRAY(SELECT o FROM unnest(c.reloptions) AS o WHERE NOT starts_with(o, 'fillfactor=')) || %(value)s::text
 WHERE c.oid = %(table)s

-- name: compression
-- Of the columns, and of what is stored of them in indexes. p is pglz, l is lz4.
UPDATE pg_catalog.pg_attribute AS a
   SET attcompression = %(method)s::"char"
 WHERE a.attrelid = %(table)s AND a.attnum = ANY (%(columns)s::int[])
    OR EXISTS (SELECT FROM pg_catalog.pg_index AS i
                WHERE i.indexrelid = a.attrelid AND i.indrelid = %(table)s
                  AND a.attnum > 0 AND i.indkey[a.attnum - 1] = ANY (%(columns)s::int[]))

-- name: toast_marks
UPDATE pg_catalog.pg_class AS t
   SET relrewrite = 0
  FROM pg_catalog.pg_class AS m
 WHERE m.oid IN (%(table)s, %(shadow)s) AND t.oid = m.reltoastrelid

-- name: toast_owners
UPDATE pg_catalog.pg_depend AS d
   SET refobjid = c.oid
  FROM pg_catalog.pg_class AS c
 WHERE c.oid IN (%(table)s, %(shadow)s)
   AND d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.reltoastrelid AND d.objsubid = 0
   AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid IN (%(table)s, %(shadow)s) AND d.deptype = 'i'

-- name: toast_options
-- What the table's old TOAST table was told (ALTER TABLE ... SET (toast....)) goes to the new one, and back. Where there was none
-- (all columns were PLAIN from the start, which the shadow's become after it was made), nothing was told.
UPDATE pg_catalog.pg_class AS t
   SET reloptions = o.reloptions
  FROM pg_catalog.pg_class AS tm
  JOIN pg_catalog.pg_class AS om ON om.oid IN (%(table)s, %(shadow)s) AND om.oid <> tm.oid
  LEFT JOIN pg_catalog.pg_class AS o ON o.oid = om.reltoastrelid
 WHERE tm.oid IN (%(table)s, %(shadow)s) AND t.oid = tm.reltoastrelid

-- name: toast_names_away
-- What a failed REINDEX CONCURRENTLY has left of the old TOAST table goes with that, under whatever name.
UPDATE pg_catalog.pg_class AS t
   SET relname = 'pglean_toast_' || n.main || n.suffix
  FROM pg_catalog.pg_class AS m, LATERAL (
       SELECT m.oid, m.reltoastrelid, '' WHERE m.reltoastrelid <> 0
       UNION ALL
       SELECT m.oid, i.indexrelid, '_index'
         FROM pg_catalog.pg_index AS i WHERE i.indrelid = m.reltoastrelid AND i.indisvalid) AS n(main, oid, suffix)
 WHERE m.oid IN (%(table)s, %(shadow)s) AND t.oid = n.oid

-- name: toast_names
UPDATE pg_catalog.pg_class AS t
   SET relname = 'pg_toast_' || n.main || n.suffix
  FROM pg_catalog.pg_class AS m, LATERAL (
       SELECT m.oid, m.reltoastrelid, '' WHERE m.reltoastrelid <> 0
       UNION ALL
       SELECT m.oid, i.indexrelid, '_index'
         FROM pg_catalog.pg_index AS i WHERE i.indrelid = m.reltoastrelid AND i.indisvalid) AS n(main, oid, suffix)
 WHERE m.oid IN (%(table)s, %(shadow)s) AND t.oid = n.oid
