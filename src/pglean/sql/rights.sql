-- What roles may do. Nothing here needs more than the right to connect.

-- name: session
-- Who logged in, as whom he works, and as which superuser he could: the one that initdb made, if it is among them.
-- `set` is the privilege that SET ROLE asks for.
SELECT current_user::text, session_user::text, w.rolsuper, l.rolsuper, quote_ident(current_user),
       (SELECT r.rolname::text FROM pg_roles r
         WHERE r.rolsuper AND pg_has_role(session_user, r.oid, %(set)s) ORDER BY r.oid LIMIT 1),
       (SELECT r.rolname::text FROM pg_roles r
         WHERE r.rolname = ANY (%(services)s) AND pg_has_role(session_user, r.oid, 'MEMBER') ORDER BY r.rolname LIMIT 1)
  FROM pg_roles w, pg_roles l
 WHERE w.rolname = current_user AND l.rolname = session_user

-- name: role_setting
-- Where the role of this session was set, most binding first, as the command that takes it back.
SELECT CASE WHEN s.setrole = 0 THEN 'ALTER DATABASE ' || quote_ident(current_database())
            ELSE 'ALTER ROLE ' || quote_ident(session_user)
                 || CASE WHEN s.setdatabase <> 0 THEN ' IN DATABASE ' || quote_ident(current_database()) ELSE '' END
       END || ' RESET role;'
  FROM pg_db_role_setting s
 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
   AND EXISTS (SELECT FROM unnest(s.setconfig) AS c WHERE starts_with(c, 'role='))
 ORDER BY s.setrole <> 0 AND s.setdatabase <> 0 DESC, s.setrole <> 0 DESC
 LIMIT 1

-- name: table
-- What the role may do to a table by itself; `maintain` is the privilege for that (PostgreSQL 17), or NULL.
SELECT format('%%I.%%I', n.nspname, c.relname), quote_ident(o.rolname),
       coalesce(has_table_privilege(c.oid, %(maintain)s), pg_has_role(c.relowner, 'USAGE')),
       pg_has_role(d.datdba, 'USAGE'),
       c.relpersistence = 'p' AND pg_get_replica_identity_index(c.oid) IS NOT NULL
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_roles o ON o.oid = c.relowner
  JOIN pg_database d ON d.datname = current_database()
 WHERE c.oid = %(oid)s

-- name: repack_settings
-- Whether the server can decode what REPACK (CONCURRENTLY) has to take over; of a setting that it has not: yes.
SELECT current_setting('wal_level') <> 'minimal',
       coalesce(current_setting('max_repack_replication_slots', true)::int > 0, true)
