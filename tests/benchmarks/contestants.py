"""Who is measured: each a process that works a log off, as `measured` watches it from outside."""

import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable

from tests.benchmarks.measure import Result, measured
from tests.system import System

Contestant = Callable[[System, int], Awaitable[Result]]


async def _worker(bench: System, events: int) -> Result:
    with tempfile.TemporaryFile() as log, bench.process(log) as process:
        result = await measured(bench, [process.pid], events)
    answers = await bench.database.fetchval("SELECT count(*) FROM measurement_updates.applied_updates")
    if answers != events:
        sys.exit(f"expected {events} updates applied, found {answers}")
    return result


def script(name: str, *more: str) -> Contestant:
    """A module of this package."""

    async def run(bench: System, events: int) -> Result:
        settings = bench.settings
        arguments = [settings.bootstrap_servers, settings.dsn, bench.updates, settings.worker_updated_topic]
        process = subprocess.Popen(  # noqa: ASYNC220  # starting it blocks for a moment, before anything is timed
            [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments, str(events), *more]
        )
        try:
            return await measured(bench, [process.pid], events)
        finally:
            process.terminate()
            process.wait()

    return run


def floor(definition_bytes: int = 0) -> Contestant:
    """Answers of about as many bytes as the worker's to the same events, headers included."""
    return script("floor", "200" if definition_bytes else "2000", str(900 + definition_bytes))


CONTESTANTS: dict[str, Contestant] = {
    "floor": floor(),
    "batch script": script("batch_script"),
    "plain FastStream": script("plain_faststream", "1"),
    "plain FastStream, 10 workers": script("plain_faststream", "10"),
    "worker": _worker,
}
