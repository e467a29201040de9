"""Kafka and Postgres from Docker, by testcontainers, whose reaper removes them even where we are killed."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

from worker.stack.jars import missing_extra
from worker.stack.kafka import SINGLE_NODE, kafka_answers
from worker.stack.postgres import postgres_answers
from worker.stack.service import ReservedPort, StackError, wait_until

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

KAFKA_IMAGE = "apache/kafka:4.1.1"
POSTGRES_IMAGE = "postgres:18-alpine"
_READY_WITHIN = 90.0  # seconds, the image's download not counted


def daemon_answers() -> bool:
    """Is there a Docker daemon? Known within 2 s."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if address.startswith("unix://"):
        # Asked by hand: docker-py takes longer to import than this takes, and leaves a socket open where it fails.
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.settimeout(2)
            try:
                daemon.connect(address.removeprefix("unix://"))
                daemon.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
                return b" 200 " in daemon.recv(64)
            except OSError:
                return False
    import docker

    try:
        client = docker.from_env(timeout=2)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except (docker.errors.DockerException, OSError):
        return False
    finally:
        client.close()


@contextmanager
def kafka_container() -> Iterator[str]:
    """Yields bootstrap servers. Raises StackError where the image can't be had or doesn't come up."""
    port = _free_port()  # fixed, since the broker must be told under which address clients see it
    with _container(KAFKA_IMAGE, 9092, port) as (container, host):
        container.with_envs(
            KAFKA_NODE_ID="1",
            KAFKA_PROCESS_ROLES="broker,controller",
            KAFKA_LISTENERS="PLAINTEXT://:9092,CONTROLLER://:9093",
            KAFKA_ADVERTISED_LISTENERS=f"PLAINTEXT://{host}:{port}",
            KAFKA_LISTENER_SECURITY_PROTOCOL_MAP="PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            KAFKA_CONTROLLER_LISTENER_NAMES="CONTROLLER",
            KAFKA_CONTROLLER_QUORUM_VOTERS="1@localhost:9093",
            **{f"KAFKA_{name.upper().replace('.', '_')}": str(value) for name, value in SINGLE_NODE.items()},
        )
        _start(container, KAFKA_IMAGE)
        wait_until(lambda: kafka_answers(f"{host}:{port}"), lambda: None, _READY_WITHIN)
        yield f"{host}:{port}"


@contextmanager
def postgres_container() -> Iterator[str]:
    """Yields a database's URL. Raises StackError where the image can't be had or doesn't come up."""
    port, password = _free_port(), secrets.token_urlsafe(16)
    with _container(POSTGRES_IMAGE, 5432, port) as (container, host):
        container.with_envs(POSTGRES_PASSWORD=password, POSTGRES_INITDB_ARGS="--encoding=UTF8 --no-locale")
        container.with_command(["postgres", "-c", "max_connections=200"])
        _start(container, POSTGRES_IMAGE)
        url = f"postgresql://postgres:{password}@{host}:{port}/postgres"
        wait_until(lambda: postgres_answers(url), lambda: None, _READY_WITHIN)
        yield url


def _free_port() -> int:
    with closing(ReservedPort()) as port:
        return port.number


@contextmanager
def _container(image: str, port: int, host_port: int) -> Iterator[tuple["DockerContainer", str]]:
    try:
        from testcontainers.core.container import DockerContainer
    except ImportError as error:
        raise missing_extra(error.name) from None

    with _clear_errors(image):
        container = DockerContainer(image)
        host = container.get_docker_client().host()
    # To be seen on this machine alone, where the daemon is on this machine.
    local = ("127.0.0.1", host_port) if host == "localhost" else host_port
    container.ports[f"{port}/tcp"] = local  # type: ignore[assignment]  # docker-py takes the pair as well
    try:
        yield container, "127.0.0.1" if host == "localhost" else host
    finally:
        with suppress(Exception):  # the reaper sees to it; what happened before matters more
            container.stop()


def _start(container: "DockerContainer", image: str) -> None:
    with _clear_errors(image):
        container.start()


@contextmanager
def _clear_errors(image: str) -> Iterator[None]:
    import docker

    try:
        yield
    except (docker.errors.DockerException, OSError) as error:
        raise StackError(f"Docker: expected a container of {image}, found {error}") from error
