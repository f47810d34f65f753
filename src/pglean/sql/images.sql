-- name: hashing
-- How the stored columns of a table can be part of their row's hash: 'send' as their type sends them, 'enum' and 'enums' (an
-- array) by the OIDs of labels (they are sent as text, which RENAME VALUE changes), 'none' where the type, or one that it is
-- made of, does neither.
-- A composite value is sent with as many attributes as its type has by now, of which the image knows nothing.
WITH RECURSIVE part(number, type) AS (
    SELECT attnum::int, atttypid FROM pg_attribute
     WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v'
    UNION
    SELECT p.number, made_of.type
      FROM part p JOIN pg_type t ON t.oid = p.type
     CROSS JOIN LATERAL (
           SELECT t.typelem
            WHERE t.typlen = -1 AND t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler(internal)'::regprocedure
           UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
           UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)) AS made_of(type))
SELECT p.number,
       CASE WHEN count(*) = 1 AND bool_and(t.typtype = 'e') THEN 'enum'
            WHEN count(*) = 2 AND bool_or(t.typtype = 'e') AND bool_or(t.typlen = -1 AND t.typelem <> 0) THEN 'enums'
            WHEN bool_and(t.typsend <> 0 AND t.typtype NOT IN ('c', 'e', 'p')) THEN 'send'
            ELSE 'none' END
  FROM part p JOIN pg_type t ON t.oid = p.type
 GROUP BY p.number
 ORDER BY p.number

-- name: settings
-- Of a transaction in which rows of the copy are looked up by their hash: always by the index, one after the other, whatever
-- the statistics (of which a new table has none) make of it.
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)

-- name: settings_back
SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL enable_bitmapscan TO DEFAULT
