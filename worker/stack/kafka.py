"""An Apache Kafka broker of our own: one node, KRaft, on 127.0.0.1, gone with us."""

import base64
import logging
import os
import subprocess
import uuid
from collections.abc import Mapping
from typing import ClassVar

from rich.console import Console

from worker.stack.jars import kafka_jars
from worker.stack.java import find_java
from worker.stack.service import ReservedPort, Service, StackError, listens

_LOG4J = """\
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %-5p %m (%c{1})%n
rootLogger.level=info
rootLogger.appenderRef.console.ref=console
"""

# No broker here lives for long. With C2 and G1, as Kafka's start script has it, the compiler alone takes a third of a core
# for the first minutes: half of what the broker does, and latencies half as long again (two cores).
_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")


class EmbeddedKafka(Service):
    """`bootstrap_servers` holds for the object's whole life, through `kill` and `start` again.

    heap: the JVM's, as `-Xmx` takes it. features: level by name, where it isn't to be this version's own. A new cluster id
    for each object.
    """

    name: ClassVar[str] = "Kafka"

    def __init__(
        self, *, heap: str = "512m", features: Mapping[str, int] | None = None, console: Console | None = None
    ) -> None:
        self._java = find_java()
        self.version, jars = kafka_jars(console or Console(stderr=True))
        super().__init__()
        self.bootstrap_servers = f"127.0.0.1:{self.port}"
        self.cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self._heap = heap
        self._features = features or {}
        self._class_path = os.pathsep.join(map(str, jars))
        self._reserved.append(ReservedPort())
        self._controller_port = self._reserved[-1].number
        self._properties = self.directory / "server.properties"
        self._log4j = self.directory / "log4j2.properties"

    def launch(self) -> None:
        if not self._properties.exists():
            self._log4j.write_text(_LOG4J)
            self._properties.write_text(
                "".join(f"{name}={value}\n" for name, value in self.settings().items())
            )
            self._format()
        self._spawn(
            [*self._jvm(), f"-Xmx{self._heap}", "kafka.Kafka", str(self._properties)],
            env=_environment(),
        )

    async def _answers(self) -> bool:
        return listens(self.port) and await kafka_answers(self.bootstrap_servers)

    def _jvm(self) -> list[str]:
        return [
            str(self._java),
            *_JVM,
            f"-Dlog4j2.configurationFile={self._log4j}",
            "-cp",
            self._class_path,
        ]

    def _format(self) -> None:
        # with "=": one id in 64 begins with "-"
        command = [
            *self._jvm(),
            "-Xmx256m",
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={self.cluster_id}",
            *(f"--feature={name}={level}" for name, level in self._features.items()),
        ]
        done = subprocess.run(
            [*command, "-c", str(self._properties)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.ready_within,
            start_new_session=True,
            env=_environment(),
        )
        if done.returncode != 0:
            self._properties.unlink()
            raise StackError(
                f"Kafka's storage: expected it formatted, found exit code {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )

    def settings(self) -> dict[str, object]:
        """What its server.properties says; written once, when it is first started."""
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "listeners": f"PLAINTEXT://{self.bootstrap_servers},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "log.dirs": self.directory / "data",
            **SINGLE_NODE,
        }


# One node, and little to set up at the first group and transaction. What isn't here is Kafka's default.
SINGLE_NODE: dict[str, object] = {
    "auto.create.topics.enable": "false",  # a misspelt topic is an error
    "offsets.topic.num.partitions": 4,
    "offsets.topic.replication.factor": 1,
    "transaction.state.log.num.partitions": 4,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 1000,  # a worker's death can be noticed sooner than in the default's 6 s
    # A broker that was killed is let in again when its last session is over: the default is 9 s.
    "broker.session.timeout.ms": 3000,
    "broker.heartbeat.interval.ms": 500,
    "log.cleaner.dedupe.buffer.size": 16 * 1024**2,  # the default takes 128 MiB of the heap
}


async def kafka_answers(bootstrap_servers: str) -> bool:
    """Does a broker answer a metadata request, and know itself ready for clients (unfenced)?"""
    from aiokafka.client import AIOKafkaClient
    from aiokafka.errors import KafkaError

    log = logging.getLogger("aiokafka")
    level = log.level
    log.setLevel(logging.CRITICAL)  # that a broker isn't up yet is what we are asking, no error
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=5_000)
    try:
        await client.bootstrap()
        return bool(client.cluster.brokers())
    except KafkaError:
        return False
    finally:
        await client.close()
        log.setLevel(level)


def _environment() -> dict[str, str]:
    # JAVA_TOOL_OPTIONS and the like are somebody else's wishes for somebody else's JVM.
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
