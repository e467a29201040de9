"""Apache Kafka's jars: resolved by jgo into `kafka.lock.toml`, cached per user, held to the lock at each use.

`python -m worker.stack.jars` resolves anew and writes the lock.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from worker.stack.service import StackError

# Kafka's POM names log4j but leaves the binding of slf4j to it to the distribution; without one the broker is
# silent. `!`: log4j's POM doesn't decide about versions (it would bring an older kafka-clients).
ENDPOINTS = ("org.apache.kafka:kafka_2.13:4.1.1", "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3!")
LOCK = Path(__file__).with_name("kafka.lock.toml")
_TRIES = 3  # a jar, before giving up


@dataclass(frozen=True, slots=True)
class Jar:
    """One artifact of the lock; `sha256` in hex."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def kafka_jars(console: Console) -> tuple[str, list[Path]]:
    """Kafka's version and its jars, in the lock's order; what the cache lacks or has damaged is downloaded.

    Safe beside other processes that do the same, and against being killed at any point: a jar takes its name
    in the cache after its checksum was found right. Raises StackError.
    """
    try:
        from platformdirs import user_cache_path
    except ImportError as error:
        raise missing_extra(error.name) from None

    locked = locked_jars()
    version = next(jar.version for jar in locked if jar.artifact == "kafka_2.13")
    cache = user_cache_path("measurement-updates") / f"kafka-{version}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / ".lock", console):
            wrong = [jar for jar in locked if _sha256(cache / jar.filename) != jar.sha256]
            if wrong:
                _download(wrong, cache, version, console)
    except OSError as error:
        raise StackError(f"{cache}: expected a place to keep Kafka's jars, found {error}") from error
    return version, [cache / jar.filename for jar in locked]


def missing_extra(package: str | None) -> StackError:
    """What to tell somebody who has installed the package without the extra that this needs."""
    return StackError(
        f"expected the package {package}, found it missing: pip install 'measurement-updates[stack]', or set"
        " KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL"
    )


def locked_jars() -> list[Jar]:
    try:
        from jgo.env import LockFile
    except ImportError as error:
        raise missing_extra(error.name) from None

    found = []
    for locked in LockFile.load(LOCK).dependencies:
        if not locked.sha256 or locked.packaging != "jar" or locked.classifier:
            raise StackError(f"{LOCK}: expected plain jars with a sha256 each, found {locked}")
        found.append(Jar(locked.groupId, locked.artifactId, locked.version, locked.sha256))
    return found


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


@contextmanager
def _alone(lock: Path, console: Console) -> Iterator[None]:
    # The system releases it when we die, so there is no stale lock to find.
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("Another process is looking after Kafka's jars: waiting for it", highlight=False)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(jars: list[Jar], cache: Path, version: str, console: Console) -> None:
    # A `staging-` directory that is there now belongs to a process that was killed: we hold the lock.
    for left in cache.glob("staging-*"):
        shutil.rmtree(left)
    damaged = [jar.filename for jar in jars if (cache / jar.filename).exists()]
    if damaged:
        console.print(
            f"{cache}: {', '.join(damaged)} isn't what the lock says: downloading anew",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"Apache Kafka {version}: downloading {len(jars)} jars to {cache}, once",
        highlight=False,
        soft_wrap=True,
    )
    with (
        tempfile.TemporaryDirectory(prefix="staging-", dir=cache) as staging,
        _shown(len(jars), version, console) as arrived,
        ThreadPoolExecutor(6, thread_name_prefix="stack-jars") as threads,
    ):
        context = _maven(Path(staging))
        try:
            for done in as_completed([threads.submit(_fetch, jar, context, cache) for jar in jars]):
                arrived(done.result())
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _maven(repo_cache: Path) -> Any:
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    # jgo's own configuration may name a mirror; the checksums hold wherever a jar comes from.
    repositories = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    return MavenContext(repo_cache=repo_cache, remote_repos=repositories, timeout=30)


def _fetch(jar: Jar, context: Any, cache: Path) -> int:
    """One jar into the cache; its size in bytes."""
    from requests import RequestException

    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    for attempt in range(1, _TRIES + 1):
        try:
            path: Path = artifact.resolve()
            break
        except (RequestException, RuntimeError, OSError) as error:
            artifact.cached_path.unlink(missing_ok=True)  # half a download
            if attempt == _TRIES:
                raise StackError(
                    f"{jar.group}:{jar.artifact}:{jar.version}: expected to download it, found {error}. It is"
                    f" needed once and kept in {cache}; a mirror is named in jgo's configuration"
                    " ([repositories] in ~/.config/jgo.conf). Or set KAFKA_BOOTSTRAP_SERVERS"
                ) from error
    found = _sha256(path)
    if found != jar.sha256:
        raise StackError(
            f"{jar.filename}: expected sha256 {jar.sha256} ({LOCK.name}), found {found}: what was downloaded"
            " isn't what was locked, so it isn't used"
        )
    size = path.stat().st_size
    os.replace(path, cache / jar.filename)
    return size


@contextmanager
def _shown(total: int, version: str, console: Console) -> Iterator[Any]:
    """Yields a function to call with the size of each jar that comes: a bar on a terminal, else lines."""
    count = size = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jars"),
        TextColumn("{task.fields[megabytes]:.1f} MB"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(f"Apache Kafka {version}", total=total, megabytes=0.0)

        def arrived(bytes_: int) -> None:
            nonlocal count, size
            count, size = count + 1, size + bytes_
            bar.update(task, completed=count, megabytes=size / 1e6)
            if not console.is_terminal and (count == total or count % 10 == 0):
                console.print(
                    f"  {count} of {total} jars, {size / 1e6:.1f} MB", highlight=False, soft_wrap=True
                )

        yield arrived


def write_lock() -> int:
    """Resolve `ENDPOINTS` with all they need at run time, and write the lock; how many jars that is."""
    from jgo.env import LockedDependency, LockFile

    with tempfile.TemporaryDirectory() as repo_cache:
        context = _maven(Path(repo_cache))
        inputs, transitive = context.resolver.resolve([context.create_dependency(name) for name in ENDPOINTS])
        needed = [*inputs, *(found for found in transitive if found.scope in ("compile", "runtime"))]
        lock = LockFile([LockedDependency.from_dependency(found) for found in needed])
    lock.dependencies.sort(key=lambda found: (found.groupId, found.artifactId))
    lock.save(LOCK)
    return len(lock.dependencies)


if __name__ == "__main__":
    Console().print(f"{LOCK}: {write_lock()} jars")
