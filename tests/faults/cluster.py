"""Three brokers of our own that keep one log: any one may go away, and what it led or coordinated moves to another."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from typing import Literal

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from rich.console import Console

from tests.system import until
from worker.stack.kafka import EmbeddedKafka

SIZE = 3

Part = Literal["coordinates transactions", "coordinates the group", "leads the input", "leads the answers"]


class Node(EmbeddedKafka):
    """Broker and controller in one; `number` is the node's id."""

    def __init__(self, number: int) -> None:
        super().__init__(heap="256m", console=Console(quiet=True))
        self.number = number
        self.voter = f"{number}@127.0.0.1:{self._controller_port}"
        self.voters: Sequence[str] = ()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Its connections stay open, and new ones come about, but it answers nothing."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def settings(self) -> dict[str, object]:
        internal = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
        return super().settings() | {
            "node.id": self.number,
            "controller.quorum.voters": ",".join(self.voters),
            **{f"{topic}.replication.factor": SIZE for topic in internal},
            "default.replication.factor": SIZE,
            "transaction.state.log.min.isr": 2,
            "min.insync.replicas": 2,
            # one that is gone is missed, and may come back, sooner
            "broker.session.timeout.ms": 2000,
            "replica.fetch.backoff.ms": 100,  # one that comes back is in sync again soon: the default is 1 s
        }


class Cluster:
    """Clients may know it by `bootstrap_servers`."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.bootstrap_servers = ",".join(node.bootstrap_servers for node in nodes)

    def node(self, number: int) -> Node:
        return next(node for node in self.nodes if node.number == number)

    @asynccontextmanager
    async def without(self, node: Node, *, in_good_order: bool = False) -> AsyncIterator[None]:
        """It is killed, or hands over what is its and stops. At the end it is there again, and every replica in sync."""
        await asyncio.to_thread(node.stop if in_good_order else node.kill)
        try:
            yield
        finally:
            await asyncio.to_thread(node.start)
        await self.is_whole()

    async def is_whole(self) -> None:
        """Until all nodes answer and every replica is in sync."""
        await until(self._is_in_sync, "every replica is in sync", 30)

    async def whose(self, part: Part, group: str, tp: TopicPartition) -> Node:
        """The node whose part this is now. `tp`: of the input, or of the answers."""
        async with self._client() as client:
            match part:
                case "coordinates transactions":
                    transactional_id = f"{group}.{tp.topic}.{tp.partition}"
                    number = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
                case "coordinates the group":
                    number = await client.coordinator_lookup(CoordinationType.GROUP, group)
                case "leads the input" | "leads the answers":
                    number = (await client.fetch_all_metadata()).leader_for_partition(tp)
        return self.node(number)

    async def _is_in_sync(self) -> bool:
        async with self._client() as client:
            metadata = await client.fetch_all_metadata()
        partitions = [found for topic in metadata._partitions.values() for found in topic.values()]
        return len(metadata.brokers()) == SIZE and all(len(found.isr) == SIZE for found in partitions)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AIOKafkaClient]:
        client = AIOKafkaClient(bootstrap_servers=self.bootstrap_servers)
        try:
            await client.bootstrap()
            yield client
        finally:
            await client.close()


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    with ExitStack() as running:
        nodes = [running.enter_context(closing(Node(number))) for number in range(1, SIZE + 1)]
        for node in nodes:
            node.cluster_id = nodes[0].cluster_id
            node.voters = [other.voter for other in nodes]
            node.launch()
        for node in nodes:
            node.wait_ready()
        yield Cluster(nodes)
