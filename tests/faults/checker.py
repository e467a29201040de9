"""The end of every fault test: `verify`, and, where the log alone tells what must have become of it, the naive model."""

from collections import defaultdict
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, ConsumerRecord

from tests import model
from tests.system import Answer, Place, System
from worker.verification import verify


@dataclass(slots=True)
class Verdicts:
    """How the records of the input were answered, and what is wrong with it."""

    updated: int = 0
    rejected: int = 0
    duplicates: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.updated + self.rejected + self.duplicates


async def check(system: System, timeout: float = 30, *, foldable: bool = True) -> Verdicts:
    """Wait until everything is answered, then look at everything. Raises AssertionError."""
    verdicts = await reckon(system, timeout, foldable=foldable)
    assert not verdicts.faults, "\n".join(verdicts.faults)
    return verdicts


async def reckon(
    system: System,
    timeout: float,
    *,
    foldable: bool = True,
    allow_repeats: bool = False,
    refuses: model.Refuses = model.nothing,
) -> Verdicts:
    """As `check`, but faults are told, not raised.

    foldable: False where the log alone doesn't tell the rows: records are gone from it, something else writes rows, or a
    measurement's updates come through several partitions. refuses: what the database refuses.
    """
    await system.settled(timeout)
    report = await verify(system.settings, allow_repeats=allow_repeats)
    found = {name: finding.count for name, finding in report.findings.items()}
    verdicts = Verdicts(
        report.applied,
        report.rejected,
        report.duplicates,
        lost=found["unanswered"],
        doubled=found["answered_twice"] + found["applied_twice"] + found["stray"],
        out_of_order=found["out_of_order"],
        faults=[
            f"{name}: {finding.count}, {list(finding.examples)}"
            for name, finding in report.findings.items()
            if finding.count
        ],
    )
    if foldable:
        verdicts.faults += await _unlike_the_model(system, refuses)
    return verdicts


async def _unlike_the_model(system: System, refuses: model.Refuses) -> list[str]:
    """Every record folded over the rows as they were seeded: each answer and each row must be as foretold."""
    answers: defaultdict[Place, list[Answer]] = defaultdict(list)
    for answer in await system.answers(count=0):
        answers[answer.place].append(answer)
    naive = model.Model(
        {name: model.row_of(row) for name, row in system.base.items()},
        int(system.settings.worker_identity_retention.total_seconds() * 1000),
        refuses,
    )
    arrivals = model.Arrivals()
    faults = []
    for record in await input_log(system):
        place = record.partition, record.offset
        outcome = naive.judge(record, arrivals.of(record))
        given = {given_in(answer) for answer in answers[place]} or {_NO_ANSWER}
        if given != {foretold(outcome)}:
            faults.append(f"record {place}: expected {foretold(outcome)}, found {given}")
    for name, row in naive.rows.items():
        found = model.row_of(await system.row(name))
        if found != row:
            faults.append(f"row {name}: expected {row}, found {found}")
    return faults


_NO_ANSWER = ("duplicate",)


def given_in(answer: Answer) -> tuple[str, ...]:
    if answer.rejected:
        return "rejected", answer.code
    return "updated", answer.text("ce_revision"), answer.text("ce_changed"), model.canonical(answer.model)


def foretold(outcome: model.Outcome) -> tuple[str, ...]:
    match outcome.kind:
        case "applied":
            changed = ",".join(outcome.changed)
            return "updated", str(outcome.revision), changed, model.canonical(outcome.body)
        case "rejected":
            return "rejected", outcome.code
        case _:
            return _NO_ANSWER


async def input_log(system: System) -> list[ConsumerRecord[bytes, bytes]]:
    """Every record that is in the input topic, in order in each partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=system.settings.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        partitions = system.partitions()
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        found: list[ConsumerRecord[bytes, bytes]] = []
        while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found
    finally:
        await consumer.stop()
