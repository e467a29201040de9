-- One row a replay: who has had which records of the input published again, why, and what became of them.
CREATE TABLE measurement_updates.replays (
    id          text PRIMARY KEY,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_by  text NOT NULL,
    why         text NOT NULL,
    selection   jsonb NOT NULL,              -- the options, as they were given
    reapply     boolean NOT NULL,
    topic       text NOT NULL,
    ranges      jsonb NOT NULL,              -- partition: [from, until], offsets fixed at the start
    state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'cancelled', 'published', 'done')),
    -- for people: how far it is says the group <worker's group>.replay.<id>, in the transaction that publishes
    read        bigint NOT NULL DEFAULT 0,
    selected    bigint NOT NULL DEFAULT 0,
    published   bigint NOT NULL DEFAULT 0,
    unpublishable bigint NOT NULL DEFAULT 0, -- can't be published again byte for byte
    missed      bigint NOT NULL DEFAULT 0,   -- retention has taken them meanwhile
    ends        jsonb NOT NULL DEFAULT '{}', -- partition: offset after its last published record
    outcome     jsonb,                       -- what became of them
    ended_at    timestamptz,
    ended_by    text
);

-- Where its records stand now: noted before the transaction that publishes them is committed, so that none is missing.
-- Of a transaction that was aborted nothing is ever decided. Removed once the outcome is kept.
CREATE TABLE measurement_updates.replayed_records (
    replay       text NOT NULL REFERENCES measurement_updates.replays,
    partition    integer NOT NULL,
    first_offset bigint NOT NULL,
    next_offset  bigint NOT NULL,
    PRIMARY KEY (replay, partition, first_offset)
);
