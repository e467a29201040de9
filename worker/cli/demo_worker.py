"""The demo's worker, as users run it: `measurement-updates run`, in a process of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from worker.database import close, connect
from worker.settings import Settings
from worker.stack.service import Service, StackError

COMMAND = Path(sys.executable).with_name("measurement-updates")


class DemoWorker(Service):
    """`measurement-updates run` in a process of its own; it ends when the demo does, whatever ends that."""

    name = "the worker"
    crash_signal = signal.SIGTERM
    stops_within = 25.0

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self.exit_code: int | None = None

    def launch(self) -> None:
        command = [str(COMMAND)]
        if not COMMAND.exists():  # installed in some other way
            command = [sys.executable, "-c", "from worker.cli import main; main()"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
        self._spawn([*command, "run"], env={**inherited, **variables(self._settings)})

    def stop(self) -> None:
        process: subprocess.Popen[bytes] | None = self._process
        super().stop()
        self.exit_code = None if process is None else process.returncode

    async def ready(self) -> None:
        """Not `wait_ready`, which blocks: Ctrl-C counts here too. Raises StackError."""
        deadline = time.monotonic() + self.ready_within
        while not await self._answers():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(
                    f"the worker isn't ready after {self.ready_within:.0f} s; its log:\n{self.log_tail()}"
                )
            await asyncio.sleep(0.1)

    def check(self) -> None:
        """Raises StackError where it has ended."""
        if self.pid is None:
            raise StackError(f"the worker has ended; its log:\n{self.log_tail()}")

    async def _answers(self) -> bool:
        """Has it taken all partitions over?"""
        connection = await connect(self._settings.dsn, application="measurement-updates demo")
        try:
            taken = await connection.fetchval(
                """SELECT count(*) FROM measurement_updates.lanes
                   WHERE topic = $1 AND retired_at IS NULL AND epoch > 0""",
                self._settings.worker_updates_topic,
            )
        finally:
            await close(connection)
        return int(taken) >= self._settings.worker_partitions


def end(worker: DemoWorker) -> list[str]:
    worker.stop()
    if worker.exit_code == 0:
        return []
    return [
        f"the worker: expected exit code 0 after SIGTERM, found {worker.exit_code}; its log:\n{worker.log_tail()}"
    ]


def variables(settings: Settings) -> dict[str, str]:
    """What is set, as environment variables: a file .env isn't read by a process that runs elsewhere."""
    found = {}
    for name in sorted(settings.model_fields_set):
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, timedelta):
            value = f"{value.total_seconds()}s"
        if value is not None:
            found[name.upper()] = str(value)
    return found
