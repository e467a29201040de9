-- The table that the REST API serves: made here only where it isn't there yet. Constraints beyond the key
-- belong to the service that owns the rows; the worker reads whatever stands there and says so if it can't.
CREATE TABLE IF NOT EXISTS cell_measurements (
    id                    text PRIMARY KEY,
    cell_instance_id      text,
    name                  text,
    protocol              jsonb,
    start_time            timestamptz,
    test_setup            jsonb,
    step_labels_validated boolean NOT NULL DEFAULT false,
    notes                 text,
    measurement_type      text NOT NULL DEFAULT 'time_series',
    properties            jsonb,
    file_metadata         jsonb,
    organization_id       text,
    created_by            text,
    created_by_email      text,
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);  -- room for HOT updates: no indexed column ever changes

-- Ours. A position is (arrival in ms, partition, offset), each as 8 bytes big-endian: compared as bytea they
-- compare in that order. NULL is older than every position: nothing has written the field yet.
ALTER TABLE cell_measurements
    ADD COLUMN IF NOT EXISTS revision bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS name_position bytea,
    ADD COLUMN IF NOT EXISTS protocol_position bytea,
    ADD COLUMN IF NOT EXISTS test_setup_position bytea,
    ADD COLUMN IF NOT EXISTS notes_position bytea,
    ADD COLUMN IF NOT EXISTS properties_position bytea,
    -- where the answer to its last applied event stands: the next answer is sent after that one
    ADD COLUMN IF NOT EXISTS answer_lane integer,
    ADD COLUMN IF NOT EXISTS answer_offset bigint;
-- A table that had a revision of its own may have it without default, and null
UPDATE cell_measurements SET revision = 0 WHERE revision IS NULL;
ALTER TABLE cell_measurements ALTER revision SET DEFAULT 0, ALTER revision SET NOT NULL;

-- One row a log: a log that begins anew (an operator's `lanes restart`) is a new row, the old one is retired.
CREATE TABLE measurement_updates.lanes (
    lane            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic           text NOT NULL,
    partition       integer NOT NULL,
    cluster         text NOT NULL,
    consumer_group  text NOT NULL,
    next_to_apply   bigint NOT NULL,  -- every record below is decided
    next_to_answer  bigint NOT NULL,  -- every record below is known to be answered
    last_offset     bigint,           -- the last record decided: offset, timestamp and digest, to know the log by
    last_timestamp  bigint,
    last_digest     bytea,
    latest_arrival  bigint NOT NULL DEFAULT 0,
    duplicates      bigint NOT NULL DEFAULT 0,  -- records that were an event applied before
    accepted_until  bigint NOT NULL DEFAULT 0,  -- an operator accepts arrivals up to here though the clock isn't there yet
    epoch           bigint NOT NULL DEFAULT 0,
    owner           text,             -- host and process of the worker
    backend_pid     integer,
    backend_start   timestamptz,
    retired_at      timestamptz,
    CHECK (next_to_answer <= next_to_apply)
);
CREATE UNIQUE INDEX lanes_one_for_each_log ON measurement_updates.lanes (topic, partition) WHERE retired_at IS NULL;

-- What an operator decided about a lane, who and why.
CREATE TABLE measurement_updates.lane_decisions (
    decided_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    lane        integer NOT NULL REFERENCES measurement_updates.lanes,
    decision    text NOT NULL CHECK (decision IN ('skip', 'restart', 'accept')),
    decided_by  text NOT NULL,
    why         text NOT NULL,
    detail      text NOT NULL
);

-- One row an applied record: finds duplicates, repeats answers, is the measurement's history.
CREATE TABLE measurement_updates.applied_updates (
    lane            integer NOT NULL,
    log_offset      bigint NOT NULL,
    arrival         bigint NOT NULL,
    identity        bytea NOT NULL,  -- digest of measurement, source, id (they may be longer than an index takes)
    content         bytea NOT NULL,  -- digest of the body as a JSON value and expectedrevision
    measurement_id  text NOT NULL,
    event_source    text NOT NULL,
    event_id        text NOT NULL,
    traceparent     text,
    revision        bigint NOT NULL,
    changed         text NOT NULL,   -- comma-separated, as in the answer
    previous_lane   integer,         -- where the measurement's previous answer stands
    previous_offset bigint,
    answer_source   text NOT NULL,   -- ce_source of the answer, as the worker was called then
    answer          text NOT NULL,   -- the body as it was (or will be) emitted, byte for byte
    PRIMARY KEY (lane, log_offset)
);
CREATE INDEX applied_updates_by_identity ON measurement_updates.applied_updates (identity);

-- One row a rejected record, as it was (or will be) emitted.
CREATE TABLE measurement_updates.rejected_updates (
    lane            integer NOT NULL,
    log_offset      bigint NOT NULL,
    arrival         bigint NOT NULL,
    key             bytea,
    value           bytea,           -- cut where the topic wouldn't take it: see truncated
    header_names    bytea[] NOT NULL,
    header_values   bytea[] NOT NULL,
    code            text NOT NULL,
    detail          json NOT NULL,   -- json, not jsonb: kept byte for byte, and \u0000 may stand in it
    truncated       json,
    state           text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'requeued', 'resolved', 'discarded')),
    PRIMARY KEY (lane, log_offset)
);

CREATE INDEX rejected_updates_closed ON measurement_updates.rejected_updates (lane, log_offset)
    WHERE state IN ('resolved', 'discarded');

-- A change of a patchable column that comes from elsewhere gets a new revision and positions at the present time,
-- above every event of that millisecond, so that an event from before it doesn't undo it.
-- The worker marks its sessions with measurement_updates.applying = on.
CREATE FUNCTION measurement_updates.stamp_other_writer() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    present bytea := int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint)
                     || '\x7fffffffffffffff7fffffffffffffff'::bytea;
    changed boolean := false;
BEGIN
    NEW.revision := OLD.revision;
    NEW.name_position := OLD.name_position;
    NEW.protocol_position := OLD.protocol_position;
    NEW.test_setup_position := OLD.test_setup_position;
    NEW.notes_position := OLD.notes_position;
    NEW.properties_position := OLD.properties_position;
    NEW.answer_lane := OLD.answer_lane;
    NEW.answer_offset := OLD.answer_offset;
    IF NEW.name IS DISTINCT FROM OLD.name THEN
        NEW.name_position := greatest(OLD.name_position, present); changed := true;
    END IF;
    IF NEW.protocol IS DISTINCT FROM OLD.protocol THEN
        NEW.protocol_position := greatest(OLD.protocol_position, present); changed := true;
    END IF;
    IF NEW.test_setup IS DISTINCT FROM OLD.test_setup THEN
        NEW.test_setup_position := greatest(OLD.test_setup_position, present); changed := true;
    END IF;
    IF NEW.notes IS DISTINCT FROM OLD.notes THEN
        NEW.notes_position := greatest(OLD.notes_position, present); changed := true;
    END IF;
    IF NEW.properties IS DISTINCT FROM OLD.properties THEN
        NEW.properties_position := greatest(OLD.properties_position, present); changed := true;
    END IF;
    IF changed THEN
        NEW.revision := OLD.revision + 1;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER measurement_updates_stamp_other_writer
    BEFORE UPDATE ON cell_measurements FOR EACH ROW
    WHEN (current_setting('measurement_updates.applying', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION measurement_updates.stamp_other_writer();
