-- name: note_lane_state
-- Only while the lane is still this worker's. It never waits for the lane's own transaction, which may hold the row for
-- long: `written` is false then. One statement, so that no stopped process ever holds the row between two.
-- $1 topic, $2 partition, $3 owner, $4 state, $5 seconds since it was said, $6 what it waits for, $7 the last error (NULL:
-- the one that is there stays), $8 seconds since that
WITH ours AS (
    SELECT lane FROM measurement_updates.lanes
    WHERE topic = $1 AND partition = $2 AND retired_at IS NULL AND owner = $3
), free AS (
    SELECT lane FROM measurement_updates.lanes WHERE lane IN (SELECT lane FROM ours) AND owner = $3
    FOR NO KEY UPDATE SKIP LOCKED
), written AS (
    UPDATE measurement_updates.lanes
    SET state = $4,
        state_since = statement_timestamp() - make_interval(secs => $5),
        waits_for = $6,
        last_error = coalesce($7, last_error),
        last_error_at = coalesce(statement_timestamp() - make_interval(secs => $8), last_error_at)
    WHERE lane IN (SELECT lane FROM free)
    RETURNING lane
)
SELECT EXISTS (SELECT FROM ours) AS ours, EXISTS (SELECT FROM written) AS written;

-- name: lanes_now
-- The input's lanes, and whether their owners' sessions are there: 'alive', 'gone', or 'hidden' where this role may not see
-- other roles' sessions. $1 topic
SELECT l.partition, l.lane, l.cluster, l.consumer_group, l.next_to_apply, l.next_to_answer, l.epoch, l.owner, l.state,
       l.state_since, l.waits_for, l.last_error, l.last_error_at,
       CASE WHEN a.pid IS NULL THEN 'gone' WHEN a.backend_start IS NULL THEN 'hidden' ELSE 'alive' END AS session
FROM measurement_updates.lanes AS l
LEFT JOIN pg_stat_activity AS a
       ON a.pid = l.backend_pid AND (a.backend_start IS NULL OR a.backend_start = l.backend_start)
WHERE l.topic = $1 AND l.retired_at IS NULL
ORDER BY l.partition;

-- name: clock_and_version
SELECT clock_timestamp() AS now, current_setting('server_version') AS version;

-- name: open_rejections
-- Counted up to a limit: a log of nonsense may have millions. $1 the limit
SELECT count(*) FROM (
    SELECT FROM measurement_updates.rejected_updates WHERE case_lane IS NULL AND state = 'open' LIMIT $1) AS counted;

-- name: replays_are_known
SELECT to_regclass('measurement_updates.replays') IS NOT NULL;

-- name: lock_holder
-- Whose transaction has had a lock on one of the tables for longest, this session aside.
SELECT c.relname AS table, a.pid, a.application_name AS application, a.usename AS user,
       coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS seconds
FROM pg_locks AS l
JOIN pg_class AS c ON c.oid = l.relation
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.granted AND l.pid <> pg_backend_pid() AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (c.oid = to_regclass('cell_measurements') OR (c.relnamespace = to_regnamespace('measurement_updates') AND c.relkind = 'r'))
ORDER BY a.xact_start NULLS LAST LIMIT 1;

-- name: running_replays
-- Those that publish, and those whose records are still being decided.
SELECT to_jsonb(r)::text AS replay FROM measurement_updates.replays AS r
WHERE to_jsonb(r) ->> 'state' IN ('running', 'published') ORDER BY to_jsonb(r) ->> 'started_at';
