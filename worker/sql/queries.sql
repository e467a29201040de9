-- name: find_lane
-- The log's present row. $1 topic, $2 partition
SELECT * FROM measurement_updates.lanes WHERE topic = $1 AND partition = $2 AND retired_at IS NULL;

-- name: begin_lane
-- A log seen for the first time. $1 topic, $2 partition, $3 cluster, $4 group, $5 offset of its first record.
-- Two workers may meet here: the second one finds the first one's row.
INSERT INTO measurement_updates.lanes (topic, partition, cluster, consumer_group, next_to_apply, next_to_answer)
VALUES ($1, $2, $3, $4, $5, $5)
ON CONFLICT DO NOTHING;

-- name: lock_lane
-- For an operator's decision. $1 topic, $2 partition
SELECT * FROM measurement_updates.lanes WHERE topic = $1 AND partition = $2 AND retired_at IS NULL FOR UPDATE;

-- name: skip_to
-- A decision raises the epoch: the owner, if there is one, takes the lane over again and finds it. $1 lane, $2 offset
UPDATE measurement_updates.lanes
SET next_to_apply = $2, last_offset = NULL, last_timestamp = NULL, last_digest = NULL, epoch = epoch + 1
WHERE lane = $1;

-- name: accept_until
-- $1 lane, $2 arrival in ms
UPDATE measurement_updates.lanes SET accepted_until = $2, epoch = epoch + 1 WHERE lane = $1;

-- name: retire_lane
-- $1 lane
UPDATE measurement_updates.lanes SET retired_at = clock_timestamp(), epoch = epoch + 1 WHERE lane = $1;

-- name: keep_decision
-- $1 lane, $2 decision, $3 by whom, $4 why, $5 what it did
INSERT INTO measurement_updates.lane_decisions (lane, decision, decided_by, why, detail) VALUES ($1, $2, $3, $4, $5);

-- name: all_lanes
SELECT topic, partition, next_to_apply, next_to_answer, duplicates, epoch, owner, retired_at IS NOT NULL AS retired
FROM measurement_updates.lanes ORDER BY topic, partition, lane;

-- name: end_former_owner
-- A stopped process keeps its locks (the lane's row among them), and no server-side timeout covers a half-sent
-- statement: end its session and wait until it is gone. backend_start tells a reused pid. $1 lane
SELECT pg_terminate_backend(activity.pid, 5000) AS ended
FROM measurement_updates.lanes
JOIN pg_stat_activity AS activity USING (backend_start)
WHERE lanes.lane = $1 AND activity.pid = lanes.backend_pid AND activity.pid <> pg_backend_pid();

-- name: raise_epoch
-- From here on the former owner can't write. $1 lane, $2 owner
UPDATE measurement_updates.lanes
SET epoch = epoch + 1, owner = $2, backend_pid = pg_backend_pid(),
    backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
WHERE lane = $1 AND retired_at IS NULL
RETURNING *;

-- name: move_lane_and_lock
-- The lane first: only if epoch and offset are still as we left them. Otherwise (no row at all) somebody else owns it, a
-- fail-over has lost commits, or an uncertain COMMIT has happened. Then the rows, as `lock_measurements` has them, each with
-- the database's clock; one of NULLs where none is found.
-- $1 lane, $2 epoch, $3 next_to_apply as it was, $4 as it will be, $5 next_to_answer, $6-$8 the last record, $9 arrival,
-- $10 ids, $11 at most so many bytes of text
WITH moved AS (
    UPDATE measurement_updates.lanes
    SET next_to_apply = $4,
        next_to_answer = greatest(next_to_answer, $5),
        last_offset = coalesce($6, last_offset),
        last_timestamp = coalesce($7, last_timestamp),
        last_digest = coalesce($8, last_digest),
        latest_arrival = $9
    WHERE lane = $1 AND epoch = $2 AND next_to_apply = $3
    RETURNING (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS clock
)
SELECT locked.*, clock FROM moved LEFT JOIN LATERAL measurement_updates.lock_measurements($10, $11) AS locked ON true;

-- name: note_answered
-- While idle, and at a clean stop. $1 lane, $2 epoch, $3 next_to_answer
UPDATE measurement_updates.lanes SET next_to_answer = greatest(next_to_answer, $3)
WHERE lane = $1 AND epoch = $2;

-- name: count_duplicates
-- They leave no other trace. $1 lane, $2 how many more
UPDATE measurement_updates.lanes SET duplicates = duplicates + $2 WHERE lane = $1;

-- name: lock_measurements
-- In id order, so that two lanes never wait for each other. $1 ids, $2 at most so many bytes of text (the first row always):
-- where that leaves rows out, the last row is one of NULLs
SELECT * FROM measurement_updates.lock_measurements($1, $2);

-- name: any_measurement
SELECT EXISTS (SELECT FROM cell_measurements);

-- name: find_identities
-- After the rows are locked: whoever applied the same event through another partition has committed. $1 identities
SELECT identity, content, arrival FROM measurement_updates.applied_updates WHERE identity = ANY($1::bytea[]);

-- name: read_batch
-- What plain updates are planned by, read without a lock: whether it still holds `write_updates` finds out. No row at all
-- where the lane isn't ours or isn't where we left it. The measurements in id order, as far as they fit, each with the
-- transaction that has written it, the database's clock, and whether any of the identities is known; one of NULLs where no
-- measurement is there.
-- $1 lane, $2 epoch, $3 next_to_apply, $4 ids, $5 at most so many bytes of text (the first row always), $6 identities,
-- $7 rows whose values take more bytes as they are stored are left out before they are made text, as are, $8 unless this
-- is true, those with a compressed value
WITH lane AS (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS clock,
           EXISTS (SELECT FROM measurement_updates.applied_updates WHERE identity = ANY ($6::bytea[])) AS any_known
    FROM measurement_updates.lanes WHERE lane = $1 AND epoch = $2 AND next_to_apply = $3
), found AS (
    SELECT m.id, m.cell_instance_id, m.name, m.protocol::text AS protocol, m.start_time, m.test_setup::text AS test_setup,
           m.step_labels_validated, m.notes, m.measurement_type, m.properties::text AS properties,
           m.file_metadata::text AS file_metadata, m.organization_id, m.created_by, m.created_by_email, m.created_at,
           m.updated_at, m.revision, m.name_position, m.protocol_position, m.test_setup_position, m.notes_position,
           m.properties_position, m.answer_lane, m.answer_offset, m.xmin AS written_by
    FROM cell_measurements AS m
    WHERE m.id = ANY ($4::text[])
      AND coalesce(pg_column_size(m.protocol), 0) + coalesce(pg_column_size(m.test_setup), 0)
          + coalesce(pg_column_size(m.notes), 0) + coalesce(pg_column_size(m.properties), 0)
          + coalesce(pg_column_size(m.file_metadata), 0) <= $7
      AND ($8::boolean OR num_nonnulls(pg_column_compression(m.protocol), pg_column_compression(m.test_setup),
                                       pg_column_compression(m.notes), pg_column_compression(m.properties),
                                       pg_column_compression(m.file_metadata)) = 0)
    OFFSET 0  -- jsonb is made text once
), sized AS (
    SELECT *, octet_length(concat(protocol, test_setup, properties, file_metadata, notes)) AS bytes FROM found
), counted AS (
    SELECT *, sum(bytes) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - bytes AS bytes_before FROM sized
)
SELECT counted.*, clock, any_known FROM lane LEFT JOIN counted ON bytes_before < $5;

-- name: write_updates
-- A field that wasn't written keeps its column as it is (no new TOAST value, and exactly what REST wrote).
-- $2: the fields that are written, a bit each. $6 to $15: NULL instead of an array where no row changes the field.
-- $18 to $30: NULL where the applied updates are many: those come by COPY, which costs two round trips but half an INSERT.
-- $31 to $40: all NULL where the lane is moved and the rows are locked already. Else $31: each row's writer, as it was read;
-- $32 to $39 as $2 to $9 of `move_lane_and_lock`; $40: how many rows there are to write. Nothing is written where the lane
-- isn't as it was, or any of the rows.
WITH moved AS (
    UPDATE measurement_updates.lanes
    SET next_to_apply = $34,
        next_to_answer = greatest(next_to_answer, $35),
        last_offset = coalesce($36, last_offset),
        last_timestamp = coalesce($37, last_timestamp),
        last_digest = coalesce($38, last_digest),
        latest_arrival = $39
    WHERE lane = $16 AND epoch = $32 AND next_to_apply = $33
    RETURNING lane
), applied AS (
    INSERT INTO measurement_updates.applied_updates
        (lane, answer_source, log_offset, arrival, identity, content, revision, measurement_id, event_source, event_id,
         changed, answer, traceparent, previous_lane, previous_offset)
    SELECT $16::integer, $17::text, *
    FROM unnest($18::bigint[], $19::bigint[], $20::bytea[], $21::bytea[], $22::bigint[], $23::text[], $24::text[],
                $25::text[], $26::text[], $27::text[], $28::text[], $29::integer[], $30::bigint[])
), written AS (
    UPDATE cell_measurements AS m
    SET name = CASE WHEN u.written & 1 <> 0 THEN u.name ELSE m.name END,
        protocol = CASE WHEN u.written & 2 <> 0 THEN u.protocol ELSE m.protocol END,
        test_setup = CASE WHEN u.written & 4 <> 0 THEN u.test_setup ELSE m.test_setup END,
        notes = CASE WHEN u.written & 8 <> 0 THEN u.notes ELSE m.notes END,
        properties = CASE WHEN u.written & 16 <> 0 THEN u.properties ELSE m.properties END,
        name_position = coalesce(u.name_position, m.name_position),
        protocol_position = coalesce(u.protocol_position, m.protocol_position),
        test_setup_position = coalesce(u.test_setup_position, m.test_setup_position),
        notes_position = coalesce(u.notes_position, m.notes_position),
        properties_position = coalesce(u.properties_position, m.properties_position),
        updated_at = u.updated_at,
        revision = u.revision,
        answer_lane = $16,
        answer_offset = u.answer_offset
    FROM unnest($1::text[], $2::integer[], $3::timestamptz[], $4::bigint[], $5::bigint[], $6::text[], $7::jsonb[], $8::jsonb[],
                $9::text[], $10::jsonb[], $11::bytea[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bytea[],
                $31::xid[])
         AS u (id, written, updated_at, revision, answer_offset, name, protocol, test_setup, notes, properties,
               name_position, protocol_position, test_setup_position, notes_position, properties_position, written_by)
    WHERE m.id = u.id AND (u.written_by IS NULL OR m.xmin = u.written_by)
    RETURNING 1
)
SELECT measurement_updates.all_or_nothing(count(*), $40, (SELECT count(*) FROM moved)) FROM written;

-- name: insert_rejected
-- One by one (executemany): rejections are few, and arrays of arrays don't unnest.
INSERT INTO measurement_updates.rejected_updates
    (lane, log_offset, arrival, key, value, header_names, header_values, code, detail, truncated)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: stored_updates
-- Answers from a position on, in log order: at most so many, and no more once they have so many bytes (the first one
-- always). `found`: how many there were before the bytes were counted. $1 lane, $2 from, $3 below, $4 rows, $5 bytes
SELECT * FROM (
    SELECT log_offset, arrival, measurement_id, event_source, event_id, traceparent, revision, changed,
           previous_lane, previous_offset, answer_source, answer, count(*) OVER () AS found,
           sum(octet_length(answer)) OVER (ORDER BY log_offset) - octet_length(answer) AS bytes_before
    FROM (SELECT * FROM measurement_updates.applied_updates
          WHERE lane = $1 AND log_offset >= $2 AND log_offset < $3 ORDER BY log_offset LIMIT $4) AS next) AS counted
WHERE bytes_before < $5 ORDER BY log_offset;

-- name: stored_rejections
-- Likewise.
SELECT * FROM (
    SELECT log_offset, arrival, key, value, header_names, header_values, code, detail, truncated,
           count(*) OVER () AS found,
           coalesce(sum(octet_length(value)) OVER (ORDER BY log_offset), 0) - coalesce(octet_length(value), 0) AS bytes_before
    FROM (SELECT * FROM measurement_updates.rejected_updates
          WHERE lane = $1 AND log_offset >= $2 AND log_offset < $3 ORDER BY log_offset LIMIT $4) AS next) AS counted
WHERE bytes_before < $5 ORDER BY log_offset;

-- name: lane_by_id
-- Where the predecessor of an answer through another partition stands. $1 lane
SELECT topic, partition, next_to_answer, retired_at FROM measurement_updates.lanes WHERE lane = $1;

-- name: foreign_lanes
-- Lanes of this input that belong to another cluster or group. $1 topic, $2 cluster, $3 group
SELECT partition, cluster, consumer_group FROM measurement_updates.lanes
WHERE topic = $1 AND retired_at IS NULL AND (cluster <> $2 OR consumer_group <> $3)
ORDER BY partition;

-- name: open_rejections
-- For metrics: who wants more than a hundred thousand of them counted is told "at least so many".
SELECT code, count(*) AS count
FROM (SELECT code FROM measurement_updates.rejected_updates
      WHERE case_lane IS NULL AND state = 'open' LIMIT 100000) AS open
GROUP BY code;

-- name: unfinished_replays
-- For metrics; the table is there once its migration is. to_jsonb: it is another version's to say which columns it has.
SELECT run ->> 'state' AS state, count(*) AS runs,
       coalesce(sum((run ->> 'read')::bigint), 0) AS read,
       coalesce(sum((run ->> 'selected')::bigint), 0) AS selected,
       coalesce(sum((run ->> 'published')::bigint), 0) AS published
FROM (SELECT to_jsonb(replays) AS run FROM measurement_updates.replays) AS runs
WHERE run ->> 'state' IN ('running', 'published')
GROUP BY run ->> 'state';

-- name: applied_lanes
-- What retention counts time by. $1 topic
SELECT partition, next_to_apply, latest_arrival, topic = $1 AS is_ours
FROM measurement_updates.lanes WHERE retired_at IS NULL;

-- name: answered_lanes
SELECT lane, next_to_answer FROM measurement_updates.lanes ORDER BY lane;

-- name: remove_applied
-- The oldest first: within a lane arrivals never go back, so the first rows by offset are the oldest.
-- $1 lane, $2 next_to_answer, $3 horizon, $4 at most so many
DELETE FROM measurement_updates.applied_updates AS a
USING (SELECT log_offset, arrival FROM measurement_updates.applied_updates
       WHERE lane = $1 AND log_offset < $2 ORDER BY log_offset LIMIT $4 FOR UPDATE SKIP LOCKED) AS oldest
WHERE a.lane = $1 AND a.log_offset = oldest.log_offset AND oldest.arrival < $3;

-- name: remove_closed_rejections
-- A later attempt stays as long as its case, a case as long as what was done to it last is within the time.
-- $1 lane, $2 next_to_answer, $3 horizon, $4 at most so many
DELETE FROM measurement_updates.rejected_updates AS r
USING (SELECT log_offset, arrival FROM measurement_updates.rejected_updates AS closed
       WHERE lane = $1 AND log_offset < $2 AND state IN ('resolved', 'discarded')
         AND NOT EXISTS (SELECT FROM measurement_updates.rejected_updates AS c
                         WHERE c.lane = closed.case_lane AND c.log_offset = closed.case_offset)
         AND NOT EXISTS (SELECT FROM measurement_updates.rejected_acts AS act
                         WHERE act.lane = closed.lane AND act.log_offset = closed.log_offset
                           AND act.acted_at >= to_timestamp($3::bigint / 1000.0))
       ORDER BY log_offset LIMIT $4 FOR UPDATE SKIP LOCKED) AS oldest
WHERE r.lane = $1 AND r.log_offset = oldest.log_offset AND oldest.arrival < $3;
