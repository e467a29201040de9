"""The input log: how far it is answered, and whether an answer's record is in it. Pure.

A log may have been trimmed, and its topic deleted and made anew, or cut short, since answers were given. So an answer names
offset and arrival, and what isn't there is found wrong only where nothing else explains it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aiokafka import TopicPartition

from worker.verification.answered import Place
from worker.verification.ledger import Known
from worker.verification.snapshot import Lane
from worker.verification.topics import Topic

Match = Literal["there", "gone", "later", "stray"]
"""Is the record that an answer names there, gone (with an older log, or trimmed), later than the point up to which
everything is compared, or was it never there?"""


@dataclass(slots=True)
class Partition:
    """One partition of the input, and the lane that applies it."""

    upto: int
    """Everything is compared up to here."""
    lane: Lane | None
    answered_to: int
    """Every record below is known to be answered."""
    retired_to: int
    """Offset up to which lanes that an operator has retired have applied another log of this name."""
    latest: int = 0
    """Where the log ended once the answers' ends were fixed: no answer that was read is to a later record."""
    latest_arrival: int = 0
    first_arrival: int | None = None
    another_log: bool = False
    """It isn't the one that the lane has applied: an operator has yet to decide."""

    @property
    def decided_to(self) -> int:
        """Every record below is decided in the snapshot."""
        return 0 if self.lane is None or self.another_log else self.lane.next_to_apply


class InputLog:
    """`upto`: where the log ended at the start. `committed`: asked for after the snapshot that `lanes` are from."""

    def __init__(
        self,
        topic: Topic,
        upto: Mapping[TopicPartition, int],
        lanes: Sequence[Lane],
        committed: Mapping[TopicPartition, int | None],
    ) -> None:
        self.topic = topic
        self.lanes = [lane for lane in lanes if lane.topic == topic.name]
        self.partitions: dict[int, Partition] = {}
        for tp in topic.partitions:
            lane = next(
                (one for one in self.lanes if one.partition == tp.partition and not one.retired), None
            )
            self.partitions[tp.partition] = Partition(
                upto=upto[tp],
                lane=lane,
                # a group's offset may have been moved, or be that of another log: what isn't applied isn't answered
                answered_to=0
                if lane is None
                else min(max(lane.next_to_answer, committed[tp] or 0), lane.next_to_apply, upto[tp]),
                retired_to=self._retired_to(tp.partition),
            )
        self._decided = {(lane.topic, lane.partition): 0 for lane in lanes}
        for lane in lanes:
            place = lane.topic, lane.partition
            self._decided[place] = max(self._decided[place], lane.next_to_apply)

    def _retired_to(self, partition: int) -> int:
        retired = [lane for lane in self.lanes if lane.partition == partition and lane.retired]
        return max((lane.next_to_apply for lane in retired), default=0)

    @property
    def lanes_answered_to(self) -> dict[int, int]:
        """Lane → offset below which everything is known to be answered."""
        answered_to = {lane.lane: lane.next_to_answer for lane in self.lanes}
        for partition in self.partitions.values():
            if partition.lane is not None:
                answered_to[partition.lane.lane] = max(partition.lane.next_to_answer, partition.answered_to)
        return answered_to

    def trimmed(self, partition: int) -> bool:
        """Records are gone from its beginning."""
        return self.topic.first[TopicPartition(self.topic.name, partition)] > 0

    def arrival(self, partition: int, offset: int, timestamp: int, timestamp_type: int) -> int:
        """To be asked of each record, in order. Where the log is trimmed, a record that is gone may have been later."""
        known = self.partitions[partition]
        if timestamp_type == 1:  # a producer's clock counts for nothing
            known.latest_arrival = max(known.latest_arrival, timestamp)
        if known.first_arrival is None:
            known.first_arrival = known.latest_arrival
        if known.lane is not None and known.lane.last_offset == offset:
            known.another_log |= known.lane.last_timestamp != timestamp
        return known.latest_arrival

    def ended(self, latest: Mapping[TopicPartition, int]) -> None:
        """`latest`: where the partitions end once the answers' ends are fixed."""
        for tp, end in latest.items():
            partition = self.partitions[tp.partition]
            partition.latest = end
            if partition.lane is not None and partition.lane.next_to_apply > end:
                partition.another_log = True

    def match(self, place: Place, record: Known | None) -> Match:
        """`record`: what is at that offset."""
        partition = self.partitions.get(place.partition)
        if partition is None:  # a topic made anew with fewer partitions
            return "gone" if any(lane.partition == place.partition for lane in self.lanes) else "stray"
        if partition.another_log:
            return "gone"
        if record is not None:
            if place.arrival == record.arrival:
                return "there"
            if place.arrival > record.arrival:
                return "there" if self.trimmed(place.partition) else "stray"
            return "gone"
        if place.offset < self.topic.first[TopicPartition(self.topic.name, place.partition)]:
            return "gone"
        if partition.upto <= place.offset < partition.latest:
            return "later"
        older = partition.first_arrival is None or place.arrival < partition.first_arrival
        return "gone" if older or place.offset < partition.retired_to else "stray"

    def is_judged_again(self, partition: int, offset: int) -> bool:
        """By a lane that an operator has restarted, after the snapshot: it may have answered something else."""
        known = self.partitions.get(partition)
        if known is None or known.another_log:  # nobody judges that one before an operator has decided
            return False
        return known.decided_to <= offset < known.retired_to

    def decided_elsewhere(self, place: Place) -> bool:
        """Does the snapshot know of that record, be it of another input or of a log that is gone?"""
        return place.offset < self._decided.get((place.topic, place.partition), 0)
