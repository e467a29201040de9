"""Kafka's transactions, those that aiokafka speaks and the newer ones: the same for whoever reads."""

import gc
from collections.abc import Mapping
from itertools import groupby
from operator import attrgetter

import pytest
from aiokafka import TopicPartition
from rich.console import Console

from tests.system import system
from worker.answer import Answer, PlainAnswer
from worker.emit import Emitter
from worker.errors import Superseded, WorkerError
from worker.retry import as_worker_error
from worker.stack.kafka import EmbeddedKafka

_MANY, _LARGE = 200, 40_000  # 8 MB: several batches of each partition in one transaction
_ROUNDS = 20
"""One right after the other: the markers of the last one aren't written yet."""


@pytest.mark.parametrize(("features", "newer"), [({}, True), ({"transaction.version": 1}, False)])
async def test_answers_and_offset_of_a_transaction_are_there_together_in_order_and_of_one_owner(
    migrated_url: str, features: Mapping[str, int], newer: bool
) -> None:
    with EmbeddedKafka(features=features, console=Console(quiet=True)) as kafka:
        async with system(kafka.bootstrap_servers, migrated_url) as lab:
            tp = TopicPartition(lab.updates, 0)
            topics = (lab.settings.worker_updated_topic, lab.settings.worker_rejected_topic)
            former, successor = (
                Emitter(lab.settings.bootstrap_servers, lab.settings.worker_group, tp, 1024**2)
                for _ in range(2)
            )

            def answer(number: int, size: int = 10) -> Answer:
                value = b"%d" % number + b" " * size
                return PlainAnswer(
                    number, topics[number % 7 == 0], b"key-%d" % (number % 5), value, 1, None, []
                )

            try:
                await former.start()
                assert (former._transactions is not None) is newer
                await former.emit([answer(number, _LARGE) for number in range(_MANY)], _MANY)
                for number in range(_MANY, _MANY + _ROUNDS):
                    await former.emit([answer(number)], number + 1)
                await former.emit([], _MANY + _ROUNDS + 3)  # nothing but duplicates
                await successor.start()
                assert isinstance(await _refused(former, answer(1_000)), Superseded)
                await successor.emit([answer(_MANY + _ROUNDS)], _MANY + _ROUNDS + 4)
            finally:
                await former.stop()
                await successor.stop()
                # aiokafka leaves a future with an error behind, which is logged once it is collected: here
                del former
                gc.collect()

            total = _MANY + _ROUNDS + 1
            found = await lab.answers(count=total)
            assert sorted(int(one.value or b"") for one in found) == list(range(total))
            place = attrgetter("topic", "partition")
            for where, there in groupby(sorted(found, key=attrgetter("topic", "partition", "offset")), place):
                numbers = [int(one.value or b"") for one in there]
                assert numbers == sorted(numbers), where
            assert (await lab.committed())[tp] == total + 3


async def _refused(emitter: Emitter, answer: Answer) -> WorkerError | None:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # what it is to us is returned
        await emitter.emit([answer], 2_000)
    return as_worker_error(raised.value)
