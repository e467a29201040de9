-- The rows of a batch, locked in id order, as far as they fit into so many bytes of text: a small update of a large
-- measurement has to read the large one. jsonb says what it takes as text only once it is made text (a number of ten
-- bytes has 131,072 digits), so that is done here, row by row, once. Where rows are missing for that reason, a last
-- row of NULLs says so; the first row is always given.
CREATE FUNCTION measurement_updates.lock_measurements(ids text[], most_bytes bigint)
RETURNS TABLE (
    id text, cell_instance_id text, name text, protocol text, start_time timestamptz, test_setup text,
    step_labels_validated boolean, notes text, measurement_type text, properties text, file_metadata text,
    organization_id text, created_by text, created_by_email text, created_at timestamptz, updated_at timestamptz,
    revision bigint, name_position bytea, protocol_position bytea, test_setup_position bytea, notes_position bytea,
    properties_position bytea, answer_lane integer, answer_offset bigint
)
LANGUAGE plpgsql AS $$
DECLARE
    bytes bigint := 0;
    is_first boolean := true;
BEGIN
    -- NO KEY: foreign keys elsewhere may still point here
    FOR id, cell_instance_id, name, protocol, start_time, test_setup, step_labels_validated, notes, measurement_type,
        properties, file_metadata, organization_id, created_by, created_by_email, created_at, updated_at, revision,
        name_position, protocol_position, test_setup_position, notes_position, properties_position,
        answer_lane, answer_offset
    IN SELECT m.id, m.cell_instance_id, m.name, m.protocol, m.start_time, m.test_setup, m.step_labels_validated,
              m.notes, m.measurement_type, m.properties, m.file_metadata, m.organization_id, m.created_by, m.created_by_email,
              m.created_at, m.updated_at, m.revision, m.name_position, m.protocol_position, m.test_setup_position,
              m.notes_position, m.properties_position, m.answer_lane, m.answer_offset
       FROM cell_measurements AS m WHERE m.id = ANY (ids) ORDER BY m.id FOR NO KEY UPDATE
    LOOP
        bytes := bytes + coalesce(octet_length(protocol), 0) + coalesce(octet_length(test_setup), 0)
                 + coalesce(octet_length(properties), 0) + coalesce(octet_length(file_metadata), 0)
                 + coalesce(octet_length(notes), 0);
        IF bytes > most_bytes AND NOT is_first THEN
            id := NULL; protocol := NULL; test_setup := NULL; properties := NULL; file_metadata := NULL; notes := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
        is_first := false;
        RETURN NEXT;
    END LOOP;
END $$;
