"""A replay's consumer group: how far it is, and its end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DeleteGroupsRequest

from worker.errors import DependencyAway
from worker.settings import Settings

_TIMEOUT = 15.0


async def group_offsets(
    settings: Settings, group: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, tuple[int, str]]:
    """Next offset and metadata of each partition that has one. Raises DependencyAway."""
    async with _administering(settings) as admin:
        coordinator = await _coordinator(admin, group)
        found = await admin.list_consumer_group_offsets(group, coordinator, list(partitions))
    return {tp: (at.offset, at.metadata) for tp, at in found.items() if at.offset >= 0}


async def delete_group(settings: Settings, group: str) -> None:
    """As well as may be: Kafka lets its offsets expire all the same."""
    with contextlib.suppress(DependencyAway):
        async with _administering(settings) as admin:
            # aiokafka knows the request's form; its admin client has no call for it
            response = await admin._send_request_to_node(
                await _coordinator(admin, group), DeleteGroupsRequest([group])
            )
            for _, code in response.results:
                if code:
                    raise for_code(code)(group)


async def _coordinator(admin: AIOKafkaAdminClient, group: str) -> int:
    """A broker that has just begun to keep groups isn't ready at once."""
    while True:
        try:
            return int(await admin.find_coordinator(group))
        except KafkaError as error:
            if not getattr(error, "retriable", False):
                raise
        await asyncio.sleep(0.1)


@asynccontextmanager
async def _administering(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers, request_timeout_ms=10_000)
    try:
        async with asyncio.timeout(_TIMEOUT):
            await admin.start()
            yield admin
    except (KafkaError, OSError, TimeoutError) as error:
        raise DependencyAway(
            f"Kafka at {settings.bootstrap_servers} doesn't answer: {type(error).__name__}: {error}"
        ) from error
    finally:
        await admin.close()
