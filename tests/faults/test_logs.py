"""What a worker's log holds when much goes wrong: one event a change of state, what to do, and nothing secret."""

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.asking import ANY_PORT, address_of, answers
from tests.faults.load import Load
from tests.faults.servers import Servers
from tests.faults.states import Log, held, stops
from tests.system import System

MARKER = "marker-of-a-payload"
RECORDS = 10_000
MOST_LINES = 60
"""Of one worker, whatever happens to it, for ten thousand records."""


@pytest.mark.thorough
@pytest.mark.own_servers
async def test_the_log_of_an_eventful_day_is_short_says_what_to_do_and_tells_nothing_secret(
    servers: Servers, lab: System, load: Load, logs: Sequence[Log]
) -> None:
    """Good, bad, refused and repeated events; a held row; each server away; a second worker comes and goes."""
    password = urlsplit(lab.settings.dsn).password
    assert password
    await lab.database.execute(
        f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.notes = '{MARKER} refused' THEN RAISE EXCEPTION 'refused: %', NEW.notes; END IF;
                RETURN NEW; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON cell_measurements FOR EACH ROW EXECUTE FUNCTION refuse()"""
    )
    with ExitStack() as running:

        def start(log: Log) -> "subprocess.Popen[bytes]":
            return running.enter_context(lab.process(log.file, WORKER_HTTP=ANY_PORT))

        worker = start(logs[0])
        await publish(lab, load, RECORDS // 4)
        address = await address_of(logs[0])
        await lab.settled(60)
        async with held(lab, "SELECT FROM cell_measurements FOR UPDATE"):
            await publish(lab, load, RECORDS // 4)
            await logs[0].says("lane waiting")
        await lab.settled(60)
        second = start(logs[1])
        await logs[1].says("lane running")
        async with servers.without("postgres"):
            await publish(lab, load, RECORDS // 4)
            await answers(address, "/health/ready", 503, "waits")
        await lab.reconnect()
        await lab.settled(60)
        await stops(second)
        async with servers.without("kafka"):
            await answers(address, "/health/ready", 503, "waits")
        await lab.renew_producer()
        await publish(lab, load, RECORDS // 4)
        await lab.settled(60)
        await stops(worker)
    for log in logs[:2]:
        events = log.events()
        assert len(events) < MOST_LINES, events
        for event in events:
            assert {"event", "level", "timestamp"} <= event.keys()
            if event["level"] in ("warning", "error"):
                said = f"{event['event']} {event.get('why')}"
                assert event.get("do") or "measurement-updates " in said or "Nothing to do" in said, event
        assert log.said(password) == 0
        assert log.said(MARKER) == 0
        assert log.said("cell vented") == 0
    assert logs[0].said("worker stopped") == 1


async def publish(lab: System, load: Load, count: int) -> None:
    """The load's own mix, and payloads that must not be quoted."""
    await load.publish(count)
    for value in (
        f'{{"notes": "{MARKER} refused"}}',
        f'{{"notes": "{MARKER} cut',
        f'{{"unknown": "{MARKER}"}}',
        f'{{"protocol": "{MARKER}"}}',
        f'{{"notes": "{MARKER} taken"}}',
    ):
        await lab.publish("m-0", value.encode(), [("x-note", MARKER.encode())])
