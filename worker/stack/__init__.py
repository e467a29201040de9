"""Where Kafka and Postgres come from, each for itself: the settings, else Docker, else servers of our own.

    with running_stack(load_settings()) as stack:
        ...  # stack.kafka_bootstrap_servers, stack.database_url

service.py   a server process: start, stop, kill, start again; its guard, which outlives us
kafka.py     Apache Kafka from its Maven artifact (jars.py) on the Java that is there (java.py)
postgres.py  Postgres from a wheel
docker.py    both as containers
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from rich.console import Console

from worker.settings import Settings
from worker.stack import docker
from worker.stack.kafka import EmbeddedKafka
from worker.stack.postgres import EmbeddedPostgres
from worker.stack.service import StackError

__all__ = ["Stack", "StackError", "running_stack"]


@dataclass(frozen=True, slots=True)
class Stack:
    """Addresses to use, and where they come from: `settings`, `docker` or `embedded`."""

    kafka_bootstrap_servers: str
    database_url: str
    kafka_origin: str
    postgres_origin: str


@contextmanager
def running_stack(
    settings: Settings, *, progress: Console | None = None, durable: bool = True, heap: str = "512m"
) -> Iterator[Stack]:
    """Kafka and Postgres for the length of a `with`; what was started is stopped and removed at its end.

    That holds for exceptions, for KeyboardInterrupt, and, by each server's guard, for a death of this process
    by any signal. What the settings name is handed on as it is: not started, not looked at, not stopped.

    progress: where notes and progress bars go (default: stderr). durable, heap: of servers of our own.
    Blocks while it starts (seconds; the first time also a download); don't call it from a coroutine.
    Raises StackError.
    """
    console = progress or Console(stderr=True)
    kafka, postgres = settings.kafka_bootstrap_servers, settings.database_url
    found_kafka = None if kafka is None else (kafka, "settings")
    found_postgres = None if postgres is None else (postgres.get_secret_value(), "settings")

    with ExitStack() as running:
        if (found_kafka is None or found_postgres is None) and docker.daemon_answers():
            try:
                found_kafka = found_kafka or (running.enter_context(docker.kafka_container()), "docker")
                found_postgres = found_postgres or (
                    running.enter_context(docker.postgres_container()),
                    "docker",
                )
            except StackError as error:
                # A daemon without a way to the images is no reason to have no stack.
                console.print(
                    f"{error}; going on without Docker", highlight=False, markup=False, soft_wrap=True
                )

        starting: EmbeddedKafka | None = None
        if found_kafka is None:
            starting = running.enter_context(closing(EmbeddedKafka(heap=heap, console=console)))
            starting.launch()
            found_kafka = (starting.bootstrap_servers, "embedded")
        if found_postgres is None:  # while Kafka is coming up
            embedded = running.enter_context(EmbeddedPostgres(durable=durable))
            found_postgres = (embedded.database_url, "embedded")
        if starting is not None:
            starting.wait_ready()

        yield Stack(found_kafka[0], found_postgres[0], found_kafka[1], found_postgres[1])
