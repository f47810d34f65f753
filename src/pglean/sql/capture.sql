-- name: triggers
-- xmin is the raw one, kept through freezing: it changes only when the row does.
SELECT t.tgname, t.oid::bigint, t.xmin::text, t.tgenabled::text, p.oid::bigint, p.xmin::text
  FROM pg_trigger t
  JOIN pg_proc p ON p.oid = t.tgfoid
  JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE t.tgrelid = %(oid)s AND n.nspname = 'pglean' AND p.proname = ANY (%(functions)s)
 ORDER BY t.tgname

-- name: key_columns
-- Changed and changed back within one transaction, a column looks as it did, but for this.
SELECT attnum::int, xmin::text FROM pg_attribute WHERE attrelid = %(oid)s AND attnum = ANY (%(numbers)s::int[]) ORDER BY attnum

-- name: trigger_exists
SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = %(oid)s AND tgname = %(name)s)

-- name: function_exists
SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                WHERE n.nspname = 'pglean' AND p.proname = %(name)s)

-- name: types
SELECT atttypid FROM pg_attribute WHERE attrelid = %(changes)s::regclass AND attnum > 0 ORDER BY attnum

-- name: bodies
SELECT p.proname, p.prosrc FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'pglean' AND p.proname = ANY (%(functions)s)
