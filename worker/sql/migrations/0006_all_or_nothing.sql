-- What makes one statement that writes several tables all or nothing, without a transaction around it.
-- serialization_failure: nothing was written, and it may be tried again. Where nothing is expected nothing is judged.
CREATE OR REPLACE FUNCTION measurement_updates.all_or_nothing(written bigint, expected bigint, lanes_moved bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF written <> expected OR (expected IS NOT NULL AND lanes_moved <> 1) THEN
        RAISE EXCEPTION 'expected % measurements and 1 lane as they were read, found % and %', expected, written, lanes_moved
            USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN written;
END $$;
