-- name: one_at_a_time
-- Two who begin the same replay at once. Until the end of the transaction
SELECT pg_advisory_xact_lock(1836413296);

-- name: unfinished_like
-- $1 topic, $2 options, $3 reapply
SELECT id, started_by, started_at FROM measurement_updates.replays
WHERE state = 'running' AND topic = $1 AND selection = $2::jsonb AND reapply = $3 LIMIT 1;

-- name: begin_replay
-- $1 id, $2 by, $3 why, $4 options, $5 reapply, $6 topic, $7 ranges
INSERT INTO measurement_updates.replays (id, started_by, why, selection, reapply, topic, ranges)
VALUES ($1, $2, $3, $4::jsonb, $5, $6, $7::jsonb);

-- name: find_replay
-- $1 id
SELECT * FROM measurement_updates.replays WHERE id = $1;

-- name: latest_replays
-- $1 topic, $2 at most so many
SELECT * FROM measurement_updates.replays WHERE topic = $1 ORDER BY started_at DESC LIMIT $2;

-- name: note_replay
-- None where it isn't running any more. $1 id, $2 read, $3 selected, $4 published, $5 unpublishable, $6 missed
UPDATE measurement_updates.replays
SET read = $2, selected = $3, published = $4, unpublishable = $5, missed = $6
WHERE id = $1 AND state = 'running' RETURNING id;

-- name: keep_counts
-- Of one that is cancelled. Likewise.
UPDATE measurement_updates.replays
SET read = $2, selected = $3, published = $4, unpublishable = $5, missed = $6 WHERE id = $1;

-- name: note_records
-- $1 id, $2 partitions, $3 first offsets, $4 next offsets
INSERT INTO measurement_updates.replayed_records (replay, partition, first_offset, next_offset)
SELECT $1, * FROM unnest($2::integer[], $3::bigint[], $4::bigint[]);

-- name: all_published
-- None where somebody has cancelled it. $1 id
UPDATE measurement_updates.replays
SET state = 'published',
    ends = (SELECT coalesce(jsonb_object_agg(partition, next_offset), '{}')
            FROM (SELECT partition, max(next_offset) AS next_offset FROM measurement_updates.replayed_records
                  WHERE replay = $1 GROUP BY partition) AS last)
WHERE id = $1 AND state = 'running' RETURNING id;

-- name: cancel_replay
-- $1 id, $2 by
UPDATE measurement_updates.replays SET state = 'cancelled', ended_at = clock_timestamp(), ended_by = $2
WHERE id = $1 AND state = 'running' RETURNING id;

-- name: keep_outcome
-- $1 id, $2 outcome
WITH kept AS (
    UPDATE measurement_updates.replays SET state = 'done', outcome = $2::jsonb, ended_at = clock_timestamp()
    WHERE id = $1 AND state = 'published' RETURNING id)
DELETE FROM measurement_updates.replayed_records WHERE replay IN (SELECT id FROM kept);

-- name: pieces
-- Its records, and how far the lanes are. $1 id, $2 topic
SELECT o.partition, min(o.first_offset) AS first_offset, max(o.next_offset) AS next_offset,
       sum(greatest(0, o.next_offset - greatest(o.first_offset, coalesce(l.next_to_apply, 0))))::bigint AS pending,
       coalesce(max(l.next_to_apply), 0) AS next_to_apply
FROM measurement_updates.replayed_records AS o
LEFT JOIN measurement_updates.lanes AS l ON (l.topic, l.partition) = ($2, o.partition) AND l.retired_at IS NULL
WHERE o.replay = $1 GROUP BY o.partition ORDER BY o.partition;

-- name: count_applied
-- $1 id, $2 topic
SELECT count(*) AS applied, count(*) FILTER (WHERE a.changed = '') AS unchanged
FROM measurement_updates.replayed_records AS o
JOIN measurement_updates.lanes AS l ON (l.topic, l.partition) = ($2, o.partition) AND l.retired_at IS NULL
JOIN measurement_updates.applied_updates AS a
    ON a.lane = l.lane AND a.log_offset >= o.first_offset AND a.log_offset < o.next_offset
WHERE o.replay = $1;

-- name: count_rejected
-- $1 id, $2 topic
SELECT r.code, count(*) AS found
FROM measurement_updates.replayed_records AS o
JOIN measurement_updates.lanes AS l ON (l.topic, l.partition) = ($2, o.partition) AND l.retired_at IS NULL
JOIN measurement_updates.rejected_updates AS r
    ON r.lane = l.lane AND r.log_offset >= o.first_offset AND r.log_offset < o.next_offset
WHERE o.replay = $1 GROUP BY r.code ORDER BY found DESC, code;

-- name: present_lanes
-- $1 topic
SELECT lane, partition, cluster, consumer_group, next_to_apply, latest_arrival
FROM measurement_updates.lanes WHERE topic = $1 AND retired_at IS NULL ORDER BY partition;

-- name: lanes_ever
-- Those that operators have retired too. $1 topic
SELECT lane, partition, next_to_apply, retired_at IS NOT NULL AS retired
FROM measurement_updates.lanes WHERE topic = $1 ORDER BY partition, lane;

-- name: decided_between
-- Of a duplicate there is no row. $1 lane, $2 from, $3 below
SELECT log_offset, arrival, NULL AS state FROM measurement_updates.applied_updates
WHERE lane = $1 AND log_offset >= $2 AND log_offset < $3
UNION ALL
SELECT log_offset, arrival, state FROM measurement_updates.rejected_updates
WHERE lane = $1 AND log_offset >= $2 AND log_offset < $3;

-- name: arrival_before
-- Of the last record below that has a row. $1 lane, $2 offset
SELECT greatest(
    (SELECT arrival FROM measurement_updates.applied_updates
     WHERE lane = $1 AND log_offset < $2 ORDER BY log_offset DESC LIMIT 1),
    (SELECT arrival FROM measurement_updates.rejected_updates
     WHERE lane = $1 AND log_offset < $2 ORDER BY log_offset DESC LIMIT 1));

-- name: next_decided
-- The first record from an offset on that has a row, and its arrival. $1 lane, $2 offset
SELECT log_offset, arrival FROM (
    (SELECT log_offset, arrival FROM measurement_updates.applied_updates
     WHERE lane = $1 AND log_offset >= $2 ORDER BY log_offset LIMIT 1)
    UNION ALL
    (SELECT log_offset, arrival FROM measurement_updates.rejected_updates
     WHERE lane = $1 AND log_offset >= $2 ORDER BY log_offset LIMIT 1)) AS first
ORDER BY log_offset LIMIT 1;

-- name: how_many_stored
-- For the progress bar. $1 lane, $2 from, $3 below
SELECT (SELECT count(*) FROM measurement_updates.applied_updates WHERE lane = $1 AND log_offset >= $2 AND log_offset < $3)
           AS updated,
       (SELECT count(*) FROM measurement_updates.rejected_updates WHERE lane = $1 AND log_offset >= $2 AND log_offset < $3)
           AS rejected;

-- name: rows_as_they_are
-- As lock_measurements gives them, without a lock. $1 ids
SELECT m.id, m.cell_instance_id, m.name, m.protocol::text, m.start_time, m.test_setup::text, m.step_labels_validated,
       m.notes, m.measurement_type, m.properties::text, m.file_metadata::text, m.organization_id, m.created_by,
       m.created_by_email, m.created_at, m.updated_at, m.revision, m.name_position, m.protocol_position,
       m.test_setup_position, m.notes_position, m.properties_position, m.answer_lane, m.answer_offset
FROM cell_measurements AS m WHERE m.id = ANY ($1::text[]);

-- name: every_row
-- Likewise, all of them.
SELECT m.id, m.cell_instance_id, m.name, m.protocol::text, m.start_time, m.test_setup::text, m.step_labels_validated,
       m.notes, m.measurement_type, m.properties::text, m.file_metadata::text, m.organization_id, m.created_by,
       m.created_by_email, m.created_at, m.updated_at, m.revision, m.name_position, m.protocol_position,
       m.test_setup_position, m.notes_position, m.properties_position, m.answer_lane, m.answer_offset
FROM cell_measurements AS m;

-- name: how_many_rows
SELECT count(*) FROM cell_measurements;

-- name: history_of
-- Where a measurement's stored answers stand, the last one first: each names the one before it. $1 measurement
WITH RECURSIVE chain (lane, log_offset, previous_lane, previous_offset, number) AS (
    SELECT a.lane, a.log_offset, a.previous_lane, a.previous_offset, 1
    FROM cell_measurements AS m
    JOIN measurement_updates.applied_updates AS a ON (a.lane, a.log_offset) = (m.answer_lane, m.answer_offset)
    WHERE m.id = $1
    UNION ALL
    SELECT a.lane, a.log_offset, a.previous_lane, a.previous_offset, chain.number + 1
    FROM chain
    JOIN measurement_updates.applied_updates AS a
        ON (a.lane, a.log_offset) = (chain.previous_lane, chain.previous_offset))
SELECT lane, log_offset FROM chain ORDER BY number DESC;
