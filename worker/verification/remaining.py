"""What is left of the answers' topics: may an answer that isn't there have been there once? Pure.

An answer is appended after its record has arrived. One lane's answers are appended in the order of its records.
"""

from collections.abc import Sequence

from aiokafka import ConsumerRecord, TopicPartition

from worker.verification.topics import Topic


class Remaining:
    """Of the answers' topics; told of each answer as it is read."""

    def __init__(self, updated: Topic, rejected: Topic) -> None:
        self._topics = {"applied": [updated], "rejected": [rejected], None: [updated, rejected]}
        self._appended: dict[TopicPartition, int] = {}
        self._lowest: dict[tuple[TopicPartition, int], int] = {}

    @property
    def complete(self) -> bool:
        """Nothing was ever taken away."""
        return not any(self._trimmed(topic) or topic.compacted for topic in self._topics[None])

    def note(self, tp: TopicPartition, record: "ConsumerRecord[bytes, bytes]") -> None:
        """The first record of each partition tells when it was appended, if by the broker's clock."""
        self._appended.setdefault(tp, int(record.timestamp) if record.timestamp_type == 1 else 2**63)

    def note_answer(self, tp: TopicPartition, partition: int, offset: int) -> None:
        """The first answer in each partition to a partition of the input."""
        self._lowest.setdefault((tp, partition), offset)

    def may_be_gone(self, kind: str | None, partition: int, offset: int, arrival: int) -> bool:
        """`kind`: of the answer, where that is known."""
        topics = self._topics[kind]
        return any(topic.compacted and kind != "rejected" for topic in topics) or any(
            arrival <= self._appended.get(tp, 2**63) and offset <= self._lowest.get((tp, partition), 2**63)
            for topic in topics
            for tp in self._trimmed(topic)
        )

    @staticmethod
    def _trimmed(topic: Topic) -> Sequence[TopicPartition]:
        return [tp for tp in topic.partitions if topic.first[tp] > 0]
