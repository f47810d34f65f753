-- name: differences
-- Columns in which the tuples of the one cannot be read as those of the other. Both have as many.
SELECT coalesce(o.attname, s.attname)
  FROM (SELECT * FROM pg_attribute WHERE attrelid = %(table)s AND attnum > 0) o
  FULL JOIN (SELECT * FROM pg_attribute WHERE attrelid = %(shadow)s::regclass AND attnum > 0) s USING (attnum)
 WHERE o.attisdropped IS DISTINCT FROM s.attisdropped
    -- Of a virtual column the heap holds nothing; another type stands in its place.
    OR NOT o.attisdropped AND o.attgenerated <> 'v'
       AND (o.atttypid, o.atttypmod, o.attlen, o.attalign, o.attbyval, o.attcollation)
           IS DISTINCT FROM (s.atttypid, s.atttypmod, s.attlen, s.attalign, s.attbyval, s.attcollation)

-- name: bytes
SELECT pg_table_size(%(shadow)s::regclass)

-- name: visible
SELECT relpages, relallvisible FROM pg_class WHERE oid = %(shadow)s::regclass
