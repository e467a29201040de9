"""A server process of ours: its data in one temporary directory, its life inside ours."""

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Self

from worker.errors import Fatal


class StackError(Fatal):
    """Kafka or Postgres for development can't be had here; the message says what to do."""


# The guard outlives us by as long as it takes to clean up: when the pipe to it closes, because we closed it
# or because we died of anything (SIGKILL too), it ends the process named last and removes the directory.
# Rejected: Linux' parent-death signal. It fires when the *thread* that started the child ends, and needs a
# preexec_fn, which isn't safe in a process with threads.
_GUARD = """
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ] && kill -s "$1" "$pid" 2>/dev/null; then
    left=100
    while [ $left -gt 0 ] && kill -0 "$pid" 2>/dev/null; do sleep 0.1; left=$((left - 1)); done
    kill -s KILL "$pid" 2>/dev/null
fi
rm -rf -- "$2"
"""


class Service:
    """Start, stop, kill and start again, on the same port and with the same data, until `close`.

    Not for several threads at once. A subclass says how the process is started and what a real answer is.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    crash_signal: ClassVar[signal.Signals] = signal.SIGKILL  # what the guard sends first when we have died
    ready_within: ClassVar[float] = 60.0  # seconds
    stops_within: ClassVar[float] = 15.0  # seconds, then it is killed

    def __init__(self, *, under: Path | None = None) -> None:
        self._reserved = [ReservedPort()]
        self.port = self._reserved[0].number
        self.directory = Path(tempfile.mkdtemp(prefix="measurement-updates-", dir=under))
        self.log = self.directory / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None
        # A session of its own for each child: Ctrl-C in a terminal goes to the whole foreground group, and
        # we want to stop them in order.
        self._guard = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                _GUARD,
                "guard",
                self.crash_signal.name.removeprefix("SIG"),
                str(self.directory),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
        )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def launch(self) -> None:
        """Start the process without waiting for it. Raises StackError where it can't be started."""
        raise NotImplementedError

    async def _answers(self) -> bool:
        """One try, a few seconds at most: has a real client had a real answer?"""
        raise NotImplementedError

    def start(self) -> None:
        """Start, and wait for a real answer. Raises StackError, with the end of the server's log."""
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it answers. Raises StackError where it ends instead, or takes too long."""
        try:
            wait_until(self._answers, self._still_running, self.ready_within)
        except StackError as error:
            raise StackError(f"{self.name} {error}; the end of its log:\n{self.log_tail()}") from None

    def stop(self) -> None:
        """Stop in good order, keeping the data; kill it where that takes longer than `stops_within`."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """Stop it as a crash would (SIGKILL), keeping the data."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End it and remove the data, so without order: there is nothing to keep. May be called again."""
        try:
            self._end(self.crash_signal)
        finally:
            if self._guard.stdin is not None and not self._guard.stdin.closed:
                self._guard.stdin.close()
            self._guard.wait()
            for port in self._reserved:
                port.close()

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of what the server printed."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"

    def _spawn(
        self, command: list[str], *, env: dict[str, str], uid: int | None = None, gid: int | None = None
    ) -> None:
        if self.pid is not None:
            raise StackError(f"{self.name}: expected it stopped, found it running as process {self.pid}")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.directory,
                env=env,
                user=uid,
                group=gid,
                extra_groups=None if uid is None else [],
            )
        self._tell_guard(str(self._process.pid))

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(self.stops_within)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._tell_guard("")
        self._process = None

    def _tell_guard(self, line: str) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(line.encode() + b"\n")
        self._guard.stdin.flush()

    def _still_running(self) -> None:
        if self._process is None or self._process.poll() is not None:
            code = None if self._process is None else self._process.returncode
            raise StackError(f"ended while it was starting (exit code {code})")


def wait_until(answers: Callable[[], Awaitable[bool]], check: Callable[[], None], within: float) -> None:
    """Try `answers` until it is true, with `check` before each try. Raises StackError after `within` seconds.

    Works with and without an event loop in this thread: each try has a loop and a thread of its own.
    """

    async def once() -> bool:
        return await answers()

    deadline = time.monotonic() + within
    with ThreadPoolExecutor(1, thread_name_prefix="stack-ready") as thread:
        while True:
            check()
            if thread.submit(asyncio.run, once()).result():
                return
            if time.monotonic() > deadline:
                raise StackError(f"didn't answer within {within:.0f} s")
            time.sleep(0.05)


def listens(port: int) -> bool:
    """Does something accept connections on 127.0.0.1:port?"""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class ReservedPort:
    """`number`, a port of 127.0.0.1 that nobody else is given until `close`, running server or not.

    From below the range that systems hand out themselves: from within it, a client that knocks on a stopped
    server's port can be given that very port as its own, connect to itself, and keep the server from coming back.
    """

    def __init__(self) -> None:
        for number in random.sample(range(20_000, 30_000), 200):
            self._socket = socket.socket()
            try:
                self._socket.bind(("127.0.0.1", number))
            except OSError:
                self._socket.close()
                continue
            self.number = number
            if sys.platform == "linux":
                # Bound, not listening: no other may bind it now, except who says so too (Java and Postgres do).
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                self._socket.close()  # elsewhere nobody at all could bind it: chosen, but not held
            return
        raise StackError("expected a free port of 127.0.0.1 between 20000 and 30000, found none in 200 tries")

    def close(self) -> None:
        """Give it up. May be called again."""
        self._socket.close()


def reachable_for_others(path: Path) -> bool:
    """May a user who is neither owner nor in the group reach and read this?"""
    path = path.resolve()
    return path.stat().st_mode & 0o004 != 0 and all(parent.stat().st_mode & 0o001 for parent in path.parents)


def copy_for_others(source: Path, target: Path) -> None:
    """Copy a tree so that every user may read (and run) it."""
    shutil.copytree(source, target, symlinks=True)
    for path in [target, *target.rglob("*")]:
        if not path.is_symlink():
            os.chmod(path, path.stat().st_mode | (0o055 if path.stat().st_mode & 0o100 else 0o044))
