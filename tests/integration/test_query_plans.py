"""The hot queries use their indexes, and stay on them however large the tables are."""

import asyncpg

from tests.system import System
from worker.database import connect_lane
from worker.sql import queries


async def test_hot_queries_read_by_index_only_what_a_batch_names(migrated_url: str) -> None:
    connection = await asyncpg.connect(migrated_url)
    try:
        await connection.execute(
            """INSERT INTO cell_measurements (id, cell_instance_id, name)
               SELECT number::text, 'c', 'n' FROM generate_series(1, 20000) AS number"""
        )
        await connection.execute(
            """INSERT INTO measurement_updates.applied_updates
                   (lane, log_offset, arrival, identity, content, measurement_id, event_source, event_id, revision,
                    changed, answer_source, answer)
               SELECT 1, number, number, sha256(number::text::bytea), '\\x00', number::text, 's', number::text, 1, '',
                      's', '{}'
               FROM generate_series(1, 20000) AS number"""
        )
        await connection.execute(
            """INSERT INTO measurement_updates.rejected_updates
                   (lane, log_offset, arrival, header_names, header_values, code, detail)
               SELECT 1, number, number, '{}', '{}', 'invalid_json', '{}' FROM generate_series(1, 20000) AS number"""
        )
        await connection.execute("ANALYZE")
        await connection.execute("SET plan_cache_mode = force_generic_plan")  # as a lane's session has it
        for name, arguments in (
            ("find_identities", "ARRAY[sha256('1'::bytea)]"),
            ("read_batch", "1, 1, 0, ARRAY['1', '77'], 1000000, ARRAY[sha256('1'::bytea)], 16384, false"),
            ("stored_updates", "1, 50, 90, 500, 1000000"),
            ("stored_rejections", "1, 50, 90, 500, 1000000"),
        ):
            await connection.execute(f"PREPARE {name} AS {queries()[name]}")
            plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE {name}({arguments})"))
            assert "Index" in plan, f"{name}:\n{plan}"
            assert "Seq Scan" not in plan.replace("Seq Scan on lanes", "a few rows"), f"{name}:\n{plan}"

        # what a function does EXPLAIN doesn't show
        async with connection.transaction():
            locked = await connection.fetch(queries()["lock_measurements"], ["1", "77", "4711"], 2**20)
            assert len(locked) == 3
            scans = await connection.fetchrow(
                """SELECT pg_stat_get_xact_numscans('cell_measurements'::regclass) AS of_the_table,
                          pg_stat_get_xact_numscans('cell_measurements_pkey'::regclass) AS of_the_key"""
            )
            assert scans is not None
            assert scans["of_the_table"] == 0
            assert scans["of_the_key"] > 0

        # a batch's rows are found one by one through the key: never by reading the table
        nulls = ", ".join(["ARRAY['1', '77']", *["NULL"] * 14, "1", "'source'", *["NULL"] * 23])
        await connection.execute(f"PREPARE write_updates AS {queries()['write_updates']}")
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE write_updates({nulls})"))
        assert "cell_measurements_pkey" in plan, plan
    finally:
        await connection.close()


async def test_a_table_without_statistics_is_not_read_as_a_whole(migrated_url: str) -> None:
    """As while a new database is filled: Postgres would think each identity to be that of one row in two hundred."""
    connection = await connect_lane(migrated_url, application="measurement-updates lane 0")
    try:
        await connection.execute(
            """ALTER TABLE measurement_updates.applied_updates SET (autovacuum_enabled = off);
               INSERT INTO measurement_updates.applied_updates
                   (lane, log_offset, arrival, identity, content, measurement_id, event_source, event_id, revision,
                    changed, answer_source, answer)
               SELECT 1, number, number, sha256(number::text::bytea), '\\x00', number::text, 's', number::text, 1, '',
                      's', repeat('x', 1000)
               FROM generate_series(1, 20000) AS number"""
        )
        identities = (
            "(SELECT array_agg(sha256((-number)::text::bytea)) FROM generate_series(1, 2000) AS number)"
        )
        literal = await connection.fetchval(f"SELECT {identities}::text")
        await connection.execute(f"PREPARE find_identities AS {queries()['find_identities']}")
        plan = "\n".join(
            row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE find_identities('{literal}')")
        )
        assert "applied_updates_by_identity" in plan, plan[-500:]
        assert "Seq Scan" not in plan, plan[-500:]
    finally:
        await connection.close()


async def test_rows_are_written_without_touching_their_indexes(lab: System) -> None:
    """HOT: no indexed column changes, and fillfactor leaves room in the page."""
    ids = [f"m-{number}" for number in range(40)]
    for id in ids:
        await lab.seed(id)
    async with lab.worker():
        for turn in range(5):
            for id in ids:
                await lab.update(id, {"notes": f"turn {turn}"}, id=f"e-{turn}")
            await lab.settled()
    # its sessions have ended, so what they did is counted
    written = await lab.database.fetchrow(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'cell_measurements'"
    )
    assert written is not None
    assert written["n_tup_upd"] >= len(ids) * 5
    assert written["n_tup_hot_upd"] > 0.8 * written["n_tup_upd"], dict(written)
