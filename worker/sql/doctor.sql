-- name: server
SELECT current_setting('server_version_num')::integer AS version_number, current_setting('server_version') AS version,
       pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
       current_user AS role, current_database() AS database,
       current_setting('max_connections')::integer AS max_connections,
       current_setting('superuser_reserved_connections')::integer
           + coalesce(current_setting('reserved_connections', true)::integer, 0) AS reserved,
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS role_limit,
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_limit,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
           AND application_name NOT LIKE 'measurement-updates%')::integer AS others;

-- name: table_rights
-- Tables of the bookkeeping on which this role lacks something, and what. Rows are removed FOR UPDATE.
SELECT c.relname AS table, string_agg(wanted, ', ' ORDER BY wanted) AS missing
FROM pg_class AS c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS wanted
WHERE c.relnamespace = to_regnamespace('measurement_updates') AND c.relkind = 'r'
  AND (c.relname <> 'migrations' OR wanted = 'SELECT') AND NOT has_table_privilege(c.oid, wanted)
GROUP BY c.relname ORDER BY c.relname;

-- name: column_rights
-- Columns of the measurements on which this role lacks something. $1 all that are read, $2 those that are written. xmin tells
-- whether a row is still as it was read: a role that is granted single columns needs that one, too.
SELECT a.attname AS column, wanted
FROM pg_attribute AS a, unnest(ARRAY['SELECT', 'UPDATE']) AS wanted
WHERE a.attrelid = to_regclass('cell_measurements') AND (a.attnum > 0 OR a.attname = 'xmin') AND NOT a.attisdropped
  AND (a.attname = ANY ($1::text[]) AND wanted = 'SELECT' OR a.attname = ANY ($2::text[]) AND wanted = 'UPDATE')
  AND NOT has_column_privilege(a.attrelid, a.attnum, wanted)
ORDER BY a.attnum < 0, a.attnum;

-- name: other_rights
-- The schema's is NULL where there is none.
SELECT has_schema_privilege(to_regnamespace('measurement_updates')::oid, 'USAGE') AS schema,
       (SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc AS p
        WHERE p.pronamespace = to_regnamespace('measurement_updates') AND p.prorettype <> 'trigger'::regtype
          AND NOT has_function_privilege(p.oid, 'EXECUTE')) AS functions,
       has_function_privilege('pg_terminate_backend(integer, bigint)', 'EXECUTE') AS terminate,
       (SELECT has_table_privilege(c.oid, 'SELECT') FROM pg_class AS c
        WHERE c.relnamespace = to_regnamespace('measurement_updates') AND c.relname = 'lanes') AS lanes;

-- name: sessions_of_others
-- Owners' sessions that this role may not end: a lane could not be taken over from them.
SELECT DISTINCT a.usename AS role
FROM measurement_updates.lanes AS l JOIN pg_stat_activity AS a ON a.pid = l.backend_pid
WHERE l.retired_at IS NULL AND a.backend_type = 'client backend' AND a.usename <> current_user
  AND (a.backend_start IS NULL OR a.backend_start = l.backend_start)
  AND NOT pg_has_role(a.usesysid, 'USAGE') AND NOT pg_has_role('pg_signal_backend', 'USAGE');

-- name: trigger
-- Ours: enabled as 'O' (origin) or 'A' (always).
SELECT tgenabled::text FROM pg_trigger
WHERE tgrelid = to_regclass('cell_measurements') AND tgname = 'measurement_updates_stamp_other_writer';

-- name: other_triggers
-- What others do before an UPDATE, without leaving the worker's sessions out.
SELECT t.tgname AS name, pg_get_triggerdef(t.oid) || ' ' || p.prosrc LIKE '%updated\_at%' AS sets_updated_at
FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE t.tgrelid = to_regclass('cell_measurements') AND NOT t.tgisinternal AND t.tgenabled <> 'D'
  AND t.tgtype & 2 = 2 AND t.tgtype & 16 = 16 AND p.pronamespace <> to_regnamespace('measurement_updates')
  AND pg_get_triggerdef(t.oid) || ' ' || p.prosrc NOT LIKE '%measurement\_updates.applying%'
ORDER BY t.tgname;

-- name: table_state
SELECT c.relkind::text AS kind, row_security_active(c.oid) AS row_security,
       coalesce((SELECT option_value::integer FROM pg_options_to_table(c.reloptions) WHERE option_name = 'fillfactor'), 100)
           AS fillfactor,
       coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions) WHERE option_name = 'autovacuum_enabled'), 'true')
           AS autovacuum,
       coalesce(s.n_tup_upd, 0) AS updates, coalesce(s.n_tup_hot_upd, 0) AS hot_updates,
       coalesce(s.n_live_tup, 0) AS live, coalesce(s.n_dead_tup, 0) AS dead,
       (SELECT string_agg(rulename, ', ') FROM pg_rules
        WHERE (schemaname, tablename) = (c.relnamespace::regnamespace::text, c.relname)) AS rules,
       (SELECT string_agg(DISTINCT i.indexrelid::regclass::text, ', ') FROM pg_index AS i
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = c.oid AND a.attname = ANY ($1::text[])) AS indexes
FROM pg_class AS c LEFT JOIN pg_stat_user_tables AS s ON s.relid = c.oid
WHERE c.oid = to_regclass('cell_measurements');

-- name: archiver
SELECT current_setting('archive_mode') AS mode, last_archived_time, last_failed_time FROM pg_stat_archiver;

-- name: every_present_lane
-- $1 topic
SELECT * FROM measurement_updates.lanes WHERE topic = $1 AND retired_at IS NULL ORDER BY partition;
