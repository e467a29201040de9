"""`doctor` on a broker of its own that has just begun, and that lets this client do only some things."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest
import pytest_asyncio
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from rich.console import Console

from tests.commands import run
from tests.integration.test_doctor_command import findings
from tests.system import System, system
from worker.stack.kafka import EmbeddedKafka


class GuardedKafka(EmbeddedKafka):
    """Whoever isn't denied something may do it."""

    def settings(self) -> dict[str, object]:
        authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        return super().settings() | {
            "authorizer.class.name": authorizer,
            "allow.everyone.if.no.acl.found": "true",
            "super.users": "User:nobody",
        }


@pytest.fixture
def kafka() -> Iterator[EmbeddedKafka]:
    with closing(GuardedKafka(console=Console(quiet=True))) as broker:
        broker.start()
        yield broker


@pytest_asyncio.fixture
async def guarded(kafka: EmbeddedKafka, migrated_url: str) -> AsyncIterator[System]:
    async with system(kafka.bootstrap_servers, migrated_url) as built:
        yield built


async def allowed(lab: System, kind: ResourceType, name: str, *operations: AclOperation) -> None:
    """Nothing else is, from now on."""
    admin = AdminClient({"bootstrap.servers": lab.settings.bootstrap_servers})
    acls = [
        AclBinding(kind, name, ResourcePatternType.LITERAL, who, "*", operation, AclPermissionType.ALLOW)
        for who, operation in [
            ("User:nobody", AclOperation.ALL),
            *(("User:ANONYMOUS", one) for one in operations),
        ]
    ]
    for created in admin.create_acls(acls).values():
        await asyncio.to_thread(created.result, 30)


async def test_a_broker_that_has_just_begun_is_well_and_rights_that_are_lacking_are_found(
    guarded: System,
) -> None:
    lab = guarded
    ran = await run(lab, "doctor", "--json")
    assert findings(ran) == [], "nobody has asked for a coordinator before"
    assert ran.code == 0

    group = lab.settings.worker_group
    await allowed(
        lab, ResourceType.TOPIC, lab.settings.worker_rejected_topic,
        AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS,
    )  # fmt: skip
    await allowed(lab, ResourceType.GROUP, group)
    await allowed(lab, ResourceType.TRANSACTIONAL_ID, f"{group}.{lab.updates}.0")
    ran = await run(lab, "doctor", "--json")
    assert ran.code == 1
    assert [(found["name"], found["said"], found["mend"]) for found in findings(ran)] == [
        (
            "rights",
            f"topic {lab.settings.worker_rejected_topic}: WRITE isn't allowed",
            f"kafka-acls.sh --add --allow-principal User:… --operation WRITE --topic {lab.settings.worker_rejected_topic}",
        ),
        (
            "rights",
            f"group {group}: READ isn't allowed",
            f"kafka-acls.sh --add --allow-principal User:… --operation READ --group {group}",
        ),
        (
            "rights",
            f"transactional ids {group}.…: WRITE isn't allowed",
            f"kafka-acls.sh --add --allow-principal User:… --operation WRITE --transactional-id {group}."
            " --resource-pattern-type prefixed",
        ),
    ]


async def test_a_topic_whose_settings_may_not_be_read_is_found(guarded: System) -> None:
    lab = guarded
    topic = lab.settings.worker_updated_topic
    await allowed(lab, ResourceType.TOPIC, topic, AclOperation.DESCRIBE, AclOperation.WRITE)
    ran = await run(lab, "doctor", "--json")
    [found] = findings(ran)
    assert (found["name"], found["said"]) == (
        topic,
        "its settings may not be read: the right DESCRIBE_CONFIGS is missing",
    )
    assert found["mend"].endswith(f"--operation DESCRIBE_CONFIGS --topic {topic}")
