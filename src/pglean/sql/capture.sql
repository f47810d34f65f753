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


-- name: next_xid
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint

-- name: fence
SELECT pg_logical_emit_message(true, %(prefix)s, %(token)s)

-- name: change_columns
SELECT attname FROM pg_attribute WHERE attrelid = %(changes)s::regclass AND attnum > 0 ORDER BY attnum

-- name: decoded
UPDATE pglean.slot SET decoded = %(lsn)s WHERE job = %(job)s

-- name: retained
-- What the slot keeps the server from removing, in bytes; NULL where it keeps nothing, is not there, or was given up.
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint END
  FROM pg_replication_slots WHERE slot_name = %(slot)s AND wal_status <> 'lost'

-- name: sent
-- What changes as long as it is at work: while a large transaction is replayed nothing is sent, but it waits for nobody.
SELECT concat(r.sent_lsn, CASE WHEN a.wait_event_type IN ('Activity', 'Client') THEN '' ELSE clock_timestamp()::text END)
  FROM pg_stat_replication r
  JOIN pg_replication_slots s ON s.active_pid = r.pid
  JOIN pg_stat_activity a ON a.pid = r.pid
 WHERE s.slot_name = %(slot)s

-- name: slot_name
-- The names of slots are those of the cluster, the numbers of runs those of the database.
SELECT 'pglean_' || oid || '_' || %(job)s FROM pg_database WHERE datname = current_database()

-- name: new_slot
-- In the transaction that makes the publication: by this row it is known to be ours.
INSERT INTO pglean.slot (job, name, temporary, decoded) VALUES (%(job)s, %(slot)s, %(temporary)s, '0/0')

-- name: create_slot
SELECT lsn::text FROM pg_create_logical_replication_slot(%(slot)s, 'pgoutput', %(temporary)s)

-- name: slot
-- What the run has decoded, and what has become of its slot: whether it is there, can still be read, is being read, and
-- was not read by anybody else.
SELECT s.decoded::text, (s.decoded - '0/0')::bigint, s.name, r.slot_name IS NOT NULL, r.wal_status IS DISTINCT FROM 'lost', r.active,
       r.confirmed_flush_lsn <= s.decoded
  FROM pglean.slot s LEFT JOIN pg_replication_slots r ON r.slot_name = s.name AND r.database = current_database()
 WHERE s.job = %(job)s

-- name: slot_columns
-- Names as the server's own bytes.
SELECT convert_to(attname::text, getdatabaseencoding()), atttypid::bigint FROM pg_attribute
 WHERE attrelid = %(oid)s AND attnum = ANY (%(numbers)s::int[])
 ORDER BY array_position(%(numbers)s::int[], attnum::int)

-- name: enums
-- Enums that the values of these columns are made of.
WITH RECURSIVE part(type) AS (
    SELECT atttypid FROM pg_attribute WHERE attrelid = %(oid)s AND attnum = ANY (%(numbers)s::int[])
    UNION
    SELECT made_of.type
      FROM part p JOIN pg_type t ON t.oid = p.type
     CROSS JOIN LATERAL (
           SELECT t.typelem WHERE t.typcategory = 'A'
           UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
           UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
           UNION ALL SELECT a.atttypid FROM pg_attribute a
                      WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS made_of(type))
SELECT t.oid::bigint FROM part p JOIN pg_type t ON t.oid = p.type WHERE t.typtype = 'e' ORDER BY t.oid

-- name: publication
-- xmin, since what was changed and changed back looks as it did. What identifies rows for subscribers: the columns of the
-- primary key, or of another index; without it, or with another one, old keys are not in the WAL. Labels of enums are sent
-- as they were, and read as they are by then.
SELECT p.oid::bigint, p.xmin::text, r.oid::bigint, r.xmin::text, c.relreplident::text,
       (SELECT i.indkey::text FROM pg_index i
         WHERE i.indrelid = c.oid AND i.indisvalid
           AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END),
       (SELECT md5(string_agg(concat_ws(' ', e.oid, e.xmin, e.enumlabel), ',' ORDER BY e.oid)) FROM pg_enum e
         WHERE e.enumtypid = ANY (%(enums)s::oid[]))
  FROM pg_class c
  LEFT JOIN pg_publication p ON p.pubname = %(publication)s
  LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
 WHERE c.oid = %(oid)s

-- name: writers
-- Who has been writing, anywhere in the cluster, since before %(since)s.
SELECT 'pid ' || pid || ' (' || concat_ws(', ', usename, nullif(application_name, ''), 'database ' || datname, state)
       || ', transaction open for ' || date_trunc('second', clock_timestamp() - xact_start) || ')'
  FROM pg_stat_activity
 WHERE backend_xid IS NOT NULL AND xact_start < %(since)s AND pid <> pg_backend_pid()
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid) || ' of ' || owner || ' in database ' || database
       || ', prepared ' || date_trunc('second', clock_timestamp() - prepared) || ' ago'
  FROM pg_prepared_xacts WHERE prepared < %(since)s

-- name: own_slots
-- Slots of a run, whether its row tells of them or not.
SELECT slot_name, active, temporary FROM pg_replication_slots
 WHERE database = current_database()
   AND slot_name = (SELECT 'pglean_' || oid || '_' || %(job)s FROM pg_database WHERE datname = current_database())

-- name: orphans
-- What bears the name of a run of this database, and its number, and can be nobody else's by what it is.
SELECT 'replication slot', slot_name::text, active, substring(slot_name FROM '\d+$')::bigint FROM pg_replication_slots
 WHERE database = current_database() AND NOT temporary AND plugin = 'pgoutput'
   AND slot_name ~ ('^pglean_' || (SELECT oid FROM pg_database WHERE datname = current_database()) || '_\d{1,18}$')
UNION ALL
SELECT 'publication', pubname::text, false, substring(pubname FROM '\d+$')::bigint FROM pg_publication p
 WHERE pubname ~ '^pglean_\d{1,18}$' AND NOT puballtables AND pubinsert AND pubupdate AND pubdelete AND NOT pubtruncate
   AND (SELECT count(*) FROM pg_publication_rel WHERE prpubid = p.oid) <= 1
 ORDER BY 1, 2

-- name: known
SELECT job FROM pglean.slot

-- name: published
SELECT r.prrelid::bigint FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %(publication)s

-- name: own_publication
SELECT EXISTS (SELECT FROM pglean.slot WHERE job = %(job)s) AND EXISTS (SELECT FROM pg_publication WHERE pubname = %(publication)s)

-- name: drop_slot
SELECT pg_drop_replication_slot(%(slot)s)

-- name: server
SELECT current_setting('wal_level'), current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots),
       current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication),
       current_setting('synchronous_standby_names'),
       (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = session_user)

-- name: replica_identity
SELECT c.relreplident::text,
       (SELECT i.indexrelid FROM pg_index i
         WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
           AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
  FROM pg_class c
 WHERE c.oid = %(oid)s

-- name: unfit_types
-- Of key columns: those whose text names something that may be renamed, and those whose input may run somebody's code.
SELECT DISTINCT format_type(t.oid, -1), CASE WHEN t.oid < 16384 THEN 'names' ELSE 'code' END
  FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
 WHERE t.oid = ANY (%(types)s::oid[])
   AND (t.oid < 16384 AND t.typname ~ '^_?reg'
        OR NOT %(trusted)s AND coalesce(e.oid, t.oid) >= 16384 AND coalesce(e.typtype, t.typtype) <> 'e')

-- name: unfit_columns
-- The same of whole rows: of all stored columns, and of all that their types are made of. XML is sent without what it says
-- of its encoding.
WITH RECURSIVE part(number, type) AS (
    SELECT attnum, atttypid FROM pg_attribute
     WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v'
    UNION
    SELECT p.number, made_of.type
      FROM part p JOIN pg_type t ON t.oid = p.type
     CROSS JOIN LATERAL (
           SELECT t.typelem WHERE t.typcategory = 'A'
           UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
           UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
           UNION ALL SELECT a.atttypid FROM pg_attribute a
                      WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS made_of(type)),
unfit AS (
    SELECT p.number, t.oid AS type,
           CASE WHEN t.oid = ANY ('{xml,aclitem}'::regtype[]) THEN CASE t.oid WHEN 'xml'::regtype THEN 'text' ELSE 'names' END
                WHEN t.oid < 16384 AND t.typname ~ '^reg' THEN 'names'
                WHEN NOT %(trusted)s AND t.oid >= 16384
                     AND (t.typtype NOT IN ('b', 'e') OR t.typtype = 'b' AND t.typcategory <> 'A') THEN 'code' END AS why
      FROM part p JOIN pg_type t ON t.oid = p.type)
SELECT a.attname, format_type(u.type, -1), u.why
  FROM unfit u JOIN pg_attribute a ON a.attrelid = %(oid)s AND a.attnum = u.number
 WHERE u.why IS NOT NULL
 ORDER BY a.attnum, u.why
