-- A case is a rejected record and whatever became of it when it was sent again: its first row carries the state, and is
-- open, requeued, resolved, or open again with one more attempt. The row of a later attempt stays to repeat its answer;
-- it is 'resolved' from the beginning, so that only cases count as open. Rows from before are cases of one attempt.
ALTER TABLE measurement_updates.rejected_updates
    ADD COLUMN attempts    integer NOT NULL DEFAULT 1,  -- of a first row: how often it was rejected
    ADD COLUMN case_lane   integer,                     -- of a later attempt: the case's first row
    ADD COLUMN case_offset bigint,
    ADD COLUMN last_lane   integer,                     -- of a first row: the newest attempt, if there is another
    ADD COLUMN last_offset bigint;

CREATE INDEX rejected_updates_waiting ON measurement_updates.rejected_updates (arrival)
    WHERE case_lane IS NULL AND state IN ('open', 'requeued');
CREATE INDEX rejected_updates_attempts ON measurement_updates.rejected_updates (case_lane, case_offset)
    WHERE case_lane IS NOT NULL;

-- Who did what to a case, and when. 'answered' is the worker's: what became of it when it was sent again.
CREATE TABLE measurement_updates.rejected_acts (
    act_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane        integer NOT NULL,
    log_offset  bigint NOT NULL,
    act         text NOT NULL CHECK (act IN ('requeued', 'discarded', 'answered')),
    acted_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    acted_by    text NOT NULL,
    why         text,
    detail      text,
    FOREIGN KEY (lane, log_offset) REFERENCES measurement_updates.rejected_updates ON DELETE CASCADE
);
CREATE INDEX rejected_acts_of_a_case ON measurement_updates.rejected_acts (lane, log_offset);
