-- What each lane does, for operators: written by its worker when it changes, never for a batch.
ALTER TABLE measurement_updates.lanes
    ADD COLUMN state         text,         -- as in the worker's log: running, waiting, stopped, given_up
    ADD COLUMN state_since   timestamptz,
    ADD COLUMN waits_for     text,         -- why it waits or has stopped, NULL while it runs
    ADD COLUMN last_error    text,         -- what it has last waited for or stopped at, kept after it has gone on
    ADD COLUMN last_error_at timestamptz;
