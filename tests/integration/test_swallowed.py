"""An update that Postgres swallows without an error is never answered as applied."""

from tests.system import System, until


async def test_a_trigger_that_swallows_updates_makes_the_lane_wait_until_it_is_gone(lab: System) -> None:
    await lab.seed("m-1")
    await lab.database.execute(
        """CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
           CREATE TRIGGER swallow BEFORE UPDATE ON cell_measurements FOR EACH ROW EXECUTE FUNCTION swallow()"""
    )
    async with lab.worker():
        await lab.update("m-1", {"notes": "x"}, id="1")

        async def taken_over_again() -> bool:
            query = "SELECT coalesce(max(epoch), 0) > 1 FROM measurement_updates.lanes"
            return bool(await lab.database.fetchval(query))

        await until(taken_over_again, "the lane has tried, and taken the partition over again")
        assert await lab.database.fetchval("SELECT count(*) FROM measurement_updates.applied_updates") == 0
        await lab.database.execute("DROP TRIGGER swallow ON cell_measurements")
        [answer] = await lab.answers()
    assert answer.model["notes"] == (await lab.row("m-1"))["notes"] == "x"
