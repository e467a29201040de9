-- name: lock_cases
-- The cases of the records at these places, first rows or later attempts, in lane and offset order, so that nobody waits
-- for anybody in a ring. A log that was applied anew (`lanes restart`) has its records twice: both are meant.
-- $1 topics, $2 partitions, $3 offsets, $4 arrivals
SELECT wanted.topic, wanted.partition, wanted.log_offset, wanted.arrival, c.lane AS case_lane, c.log_offset AS case_offset,
       c.state, c.last_lane, c.last_offset
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS wanted (topic, partition, log_offset, arrival)
JOIN measurement_updates.lanes AS l ON l.topic = wanted.topic AND l.partition = wanted.partition
JOIN measurement_updates.rejected_updates AS r
    ON r.lane = l.lane AND r.log_offset = wanted.log_offset AND r.arrival = wanted.arrival
JOIN measurement_updates.rejected_updates AS c
    ON c.lane = coalesce(r.case_lane, r.lane) AND c.log_offset = coalesce(r.case_offset, r.log_offset)
ORDER BY c.lane, c.log_offset
FOR NO KEY UPDATE OF c;

-- name: settle_cases
-- What somebody has discarded isn't opened again by a replay that meets it; applied, it is resolved like any.
-- $1 lanes, $2 offsets, $3 states, $4 rejections more, $5 and $6 lanes and offsets of the newest attempts (NULL: as it was)
UPDATE measurement_updates.rejected_updates AS r
SET state = CASE WHEN r.state = 'discarded' AND s.state = 'open' THEN r.state ELSE s.state END,
    attempts = r.attempts + s.rejections,
    last_lane = coalesce(s.last_lane, r.last_lane),
    last_offset = coalesce(s.last_offset, r.last_offset)
FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::integer[], $5::integer[], $6::bigint[])
     AS s (lane, log_offset, state, rejections, last_lane, last_offset)
WHERE r.lane = s.lane AND r.log_offset = s.log_offset;

-- name: join_cases
-- Rows of later attempts to their cases. $1 lane, $2 offsets, $3 and $4 lanes and offsets of the cases
UPDATE measurement_updates.rejected_updates AS r
SET case_lane = s.case_lane, case_offset = s.case_offset, state = 'resolved'
FROM unnest($2::bigint[], $3::integer[], $4::bigint[]) AS s (log_offset, case_lane, case_offset)
WHERE r.lane = $1 AND r.log_offset = s.log_offset;

-- name: keep_acts
-- In this order. $1 lanes, $2 offsets, $3 details, $4 act, $5 by whom, $6 why
INSERT INTO measurement_updates.rejected_acts (lane, log_offset, act, acted_by, why, detail)
SELECT lane, log_offset, $4, $5, $6, detail
FROM unnest($1::integer[], $2::bigint[], $3::text[]) WITH ORDINALITY AS acts (lane, log_offset, detail, number)
ORDER BY number
RETURNING act_id, lane, log_offset;

-- name: set_state
-- $1 lanes, $2 offsets, $3 state, $4 only where it is this one now (NULL: any)
UPDATE measurement_updates.rejected_updates AS r SET state = $3
FROM unnest($1::integer[], $2::bigint[]) AS s (lane, log_offset)
WHERE r.lane = s.lane AND r.log_offset = s.log_offset AND ($4::text IS NULL OR r.state = $4);

-- name: note_sent
-- Where each requeued record went. $1 acts, $2 details
UPDATE measurement_updates.rejected_acts AS a SET detail = s.detail
FROM unnest($1::bigint[], $2::text[]) AS s (act_id, detail) WHERE a.act_id = s.act_id;

-- name: list_cases
-- Each with its newest attempt. Of an event's attributes the headers have the binary form's, the value the structured
-- form's: both only where they are asked for. A message is cut out of its JSON: \u0000 may stand in what follows.
-- $1 states, $2 since and $3 until (arrival in ms), $4 codes (NULL: all), $5 measurement (NULL: all; a superset),
-- $6 with attributes
SELECT c.lane, c.log_offset, l.topic, l.partition, c.arrival, c.state, c.attempts, n.arrival AS last_arrival, n.code,
       substring(n.detail::text FROM '^\{"message":("(?:[^"\\]|\\.)*")') AS message,
       coalesce(octet_length(n.value), 0) AS value_bytes, n.truncated IS NOT NULL AS cut, n.key,
       CASE WHEN $6 OR coalesce(n.key, '') = '' THEN n.header_names END AS header_names,
       CASE WHEN $6 OR coalesce(n.key, '') = '' THEN n.header_values END AS header_values,
       CASE WHEN ($6 OR coalesce(n.key, '') = '') AND EXISTS (
           SELECT FROM unnest(n.header_values) AS content
           WHERE octet_length(content) < 1000 AND lower(encode(content, 'escape')) LIKE '%application/cloudevents+json%')
       THEN n.value END AS envelope
FROM measurement_updates.rejected_updates AS c
JOIN measurement_updates.lanes AS l ON l.lane = c.lane
JOIN measurement_updates.rejected_updates AS n
    ON n.lane = coalesce(c.last_lane, c.lane) AND n.log_offset = coalesce(c.last_offset, c.log_offset)
WHERE c.case_lane IS NULL AND c.state = ANY ($1::text[]) AND c.arrival >= $2 AND c.arrival < $3
  AND ($4::text[] IS NULL OR n.code = ANY ($4::text[]))
  AND ($5::text IS NULL OR coalesce(n.key, '') = '' OR n.key = convert_to($5::text, 'UTF8'))
  AND NOT EXISTS (  -- applied anew from a log that was restarted: the newer lane's row stands for both
      SELECT FROM measurement_updates.lanes AS newer
      JOIN measurement_updates.rejected_updates AS twin ON twin.lane = newer.lane
      WHERE newer.topic = l.topic AND newer.partition = l.partition AND newer.lane > l.lane
        AND twin.log_offset = c.log_offset AND twin.arrival = c.arrival)
ORDER BY c.arrival, l.partition, c.log_offset;

-- name: count_states
-- Of cases that wait for somebody.
SELECT state, count(*) AS cases FROM measurement_updates.rejected_updates
WHERE case_lane IS NULL AND state IN ('open', 'requeued') GROUP BY state;

-- name: find_case
-- The case of the record at this place, in the newest lane that has one. $1 topic, $2 partition, $3 offset,
-- $4 arrival (NULL: any)
SELECT c.lane, c.log_offset, l.topic, l.partition, c.arrival, c.state, c.attempts, n.arrival AS last_arrival, n.code,
       substring(n.detail::text FROM '^\{"message":("(?:[^"\\]|\\.)*")') AS message,
       coalesce(octet_length(n.value), 0) AS value_bytes, n.truncated IS NOT NULL AS cut, n.key, n.header_names,
       n.header_values, n.value AS envelope
FROM measurement_updates.lanes AS own
JOIN measurement_updates.rejected_updates AS r ON r.lane = own.lane AND r.log_offset = $3
JOIN measurement_updates.rejected_updates AS c
    ON c.lane = coalesce(r.case_lane, r.lane) AND c.log_offset = coalesce(r.case_offset, r.log_offset)
JOIN measurement_updates.lanes AS l ON l.lane = c.lane
JOIN measurement_updates.rejected_updates AS n
    ON n.lane = coalesce(c.last_lane, c.lane) AND n.log_offset = coalesce(c.last_offset, c.log_offset)
WHERE own.topic = $1 AND own.partition = $2::bigint AND ($4::bigint IS NULL OR r.arrival = $4)
ORDER BY own.lane DESC LIMIT 1;

-- name: what_stands_there
-- Where no rejected record is. $1 topic, $2 partition, $3 offset
SELECT l.next_to_apply, a.measurement_id
FROM measurement_updates.lanes AS l
LEFT JOIN measurement_updates.applied_updates AS a ON a.lane = l.lane AND a.log_offset = $3
WHERE l.topic = $1 AND l.partition = $2::bigint ORDER BY l.lane DESC LIMIT 1;

-- name: newest_records
-- The newest attempt of each case. $1 lanes, $2 offsets
SELECT c.lane AS case_lane, c.log_offset AS case_offset, l.topic, l.partition, n.lane, n.log_offset, n.arrival, n.key, n.value,
       n.header_names, n.header_values, n.code, n.detail::text AS detail, n.truncated::text AS truncated, l.retired_at
FROM unnest($1::integer[], $2::bigint[]) AS wanted (lane, log_offset)
JOIN measurement_updates.rejected_updates AS c ON c.lane = wanted.lane AND c.log_offset = wanted.log_offset
JOIN measurement_updates.rejected_updates AS n
    ON n.lane = coalesce(c.last_lane, c.lane) AND n.log_offset = coalesce(c.last_offset, c.log_offset)
JOIN measurement_updates.lanes AS l ON l.lane = n.lane;

-- name: attempts_of_case
-- $1 lane, $2 offset of its first row
SELECT l.topic, l.partition, r.log_offset, r.arrival, r.code,
       substring(r.detail::text FROM '^\{"message":("(?:[^"\\]|\\.)*")') AS message
FROM measurement_updates.rejected_updates AS r JOIN measurement_updates.lanes AS l USING (lane)
WHERE (r.lane = $1 AND r.log_offset = $2) OR (r.case_lane = $1 AND r.case_offset = $2)
ORDER BY r.arrival, l.partition, r.log_offset;

-- name: acts_of_case
-- $1 lane, $2 offset of its first row
SELECT act, acted_at, acted_by, why, detail FROM measurement_updates.rejected_acts
WHERE lane = $1 AND log_offset = $2 ORDER BY act_id;

-- name: last_requeued
-- $1 lane, $2 offset
SELECT acted_at, acted_by, detail FROM measurement_updates.rejected_acts
WHERE lane = $1 AND log_offset = $2 AND act = 'requeued' ORDER BY act_id DESC LIMIT 1;

-- name: measurement_now
-- $1 id
SELECT id, revision, updated_at::text, name, measurement_type, organization_id, protocol::text, test_setup::text, notes,
       properties::text
FROM cell_measurements WHERE id = $1;

-- name: fates
-- What became of the records at these places, as far as they are decided; neither applied nor rejected: a duplicate.
-- $1 topics, $2 partitions, $3 offsets
SELECT s.number - 1 AS number, a.revision, a.changed, r.code,
       substring(r.detail::text FROM '^\{"message":("(?:[^"\\]|\\.)*")') AS message
FROM unnest($1::text[], $2::integer[], $3::bigint[]) WITH ORDINALITY AS s (topic, partition, log_offset, number)
JOIN measurement_updates.lanes AS l
    ON l.topic = s.topic AND l.partition = s.partition AND l.retired_at IS NULL AND l.next_to_apply > s.log_offset
LEFT JOIN measurement_updates.applied_updates AS a ON a.lane = l.lane AND a.log_offset = s.log_offset
LEFT JOIN measurement_updates.rejected_updates AS r ON r.lane = l.lane AND r.log_offset = s.log_offset;
