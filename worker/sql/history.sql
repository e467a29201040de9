-- name: measurement_row
-- As `lock_measurements` gives it: the columns of worker/measurement.py, in its order. $1 id
SELECT id, cell_instance_id, name, protocol::text, start_time, test_setup::text, step_labels_validated, notes,
       measurement_type, properties::text, file_metadata::text, organization_id, created_by, created_by_email,
       created_at, updated_at, revision, name_position, protocol_position, test_setup_position, notes_position,
       properties_position, answer_lane, answer_offset
FROM cell_measurements WHERE id = $1;

-- name: chain
-- One measurement's applied updates, the newest first, from this one back: each by the primary key. There is no index by
-- measurement, on purpose: it would cost every batch. $1 lane, $2 offset, $3 at most so many
WITH RECURSIVE chain AS (
    SELECT 1 AS step, lane, log_offset, previous_lane, previous_offset, revision, changed <> '' AS changed, arrival
    FROM measurement_updates.applied_updates WHERE lane = $1 AND log_offset = $2
    UNION ALL
    SELECT chain.step + 1, a.lane, a.log_offset, a.previous_lane, a.previous_offset, a.revision, a.changed <> '', a.arrival
    FROM chain
    JOIN measurement_updates.applied_updates AS a
      ON a.lane = chain.previous_lane AND a.log_offset = chain.previous_offset
    WHERE chain.step < $3
)
SELECT * FROM chain ORDER BY step;

-- name: links
-- These applied updates, whole, in this order, as far as they fit into so many bytes (the first one always). What
-- retention has taken meanwhile is left out. $1 lanes, $2 offsets, $3 bytes
SELECT * FROM (
    SELECT wanted.place, l.topic, l.partition, a.log_offset, a.arrival, a.event_source, a.event_id, a.traceparent,
           a.revision, a.changed, a.answer,
           sum(octet_length(a.answer)) OVER (ORDER BY wanted.place) - octet_length(a.answer) AS bytes_before
    FROM unnest($1::integer[], $2::bigint[]) WITH ORDINALITY AS wanted (lane, log_offset, place)
    JOIN measurement_updates.applied_updates AS a ON a.lane = wanted.lane AND a.log_offset = wanted.log_offset
    JOIN measurement_updates.lanes AS l ON l.lane = wanted.lane) AS counted
WHERE bytes_before < $3 ORDER BY place;
