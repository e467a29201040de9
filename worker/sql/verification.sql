-- name: every_lane
-- Of all topics: answers to several inputs may stand in one topic.
SELECT lane, topic, partition, cluster, consumer_group, next_to_apply, next_to_answer, last_offset, last_timestamp,
       latest_arrival, retired_at IS NOT NULL AS retired
FROM measurement_updates.lanes ORDER BY lane;

-- name: everything_applied
-- Digests instead of bodies: they are compared byte for byte all the same. $1 lanes
SELECT lane, log_offset, arrival, measurement_id, event_source, event_id, traceparent, revision, changed, previous_lane,
       previous_offset, answer_source, sha256(convert_to(answer, 'UTF8')) AS answer
FROM measurement_updates.applied_updates WHERE lane = ANY($1::integer[]);

-- name: everything_rejected
-- $1 lanes
SELECT lane, log_offset, arrival, key, sha256(coalesce(value, '')) AS value, coalesce(octet_length(value), -1) AS length,
       header_names, header_values, code, detail::text, truncated::text
FROM measurement_updates.rejected_updates WHERE lane = ANY($1::integer[]);

-- name: rows_and_answers
-- Each measurement to which an event was applied, and its last answer, where that is still kept.
SELECT m.id, m.cell_instance_id, m.name, m.protocol::text, m.start_time, m.test_setup::text, m.step_labels_validated,
       m.notes, m.measurement_type, m.properties::text, m.file_metadata::text, m.organization_id, m.created_by,
       m.created_by_email, m.created_at, m.updated_at, m.revision, m.answer_lane, m.answer_offset,
       a.measurement_id, a.revision AS answer_revision, a.answer
FROM cell_measurements AS m
LEFT JOIN measurement_updates.applied_updates AS a ON (a.lane, a.log_offset) = (m.answer_lane, m.answer_offset)
WHERE m.answer_lane IS NOT NULL;

-- name: how_much_there_is
-- For the progress bar. $1 lanes
SELECT (SELECT count(*) FROM measurement_updates.applied_updates WHERE lane = ANY($1::integer[]))
           + (SELECT count(*) FROM measurement_updates.rejected_updates WHERE lane = ANY($1::integer[])) AS stored,
       (SELECT count(*) FROM cell_measurements WHERE answer_lane IS NOT NULL) AS rows;
