"""`watch`: the answers as they come."""

import asyncio
import base64
import os
import select
import signal
import stat
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import orjson
import typer
from aiokafka import ConsumerRecord
from pydantic import TypeAdapter, ValidationError
from rich.text import Text

from contracts.cloudevents import (
    MeasurementUpdated,
    UnreadableEvent,
    UpdateRejected,
    read_rejected,
    read_updated,
)
from worker.cli.clients import answer_consumer
from worker.cli.terminal import err, fail, out
from worker.settings import Duration, Settings, load_settings

Answer = MeasurementUpdated | UpdateRejected


def watch(
    from_beginning: Annotated[
        bool,
        typer.Option("--from-beginning", help="All answers that the topics still have, then the new ones."),
    ] = False,
    measurement: Annotated[
        str | None,
        typer.Option("--measurement", metavar="ID", help="Only this measurement's.", show_default=False),
    ] = None,
    updated_only: Annotated[bool, typer.Option("--updated-only", help="Without the rejected.")] = False,
    rejected_only: Annotated[bool, typer.Option("--rejected-only", help="Only the rejected.")] = False,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, help="End after so many answers.", show_default=False),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            help="End after this time: 30s, 5m. Exit code 1 if --count wasn't reached.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: the whole event, measurement included.")
    ] = False,
) -> None:
    """Show the answers as they come: measurements updated, updates rejected.

    Only what is committed is shown. Nothing is consumed from anybody: no
    consumer group is used. Ctrl-C ends it.

    [bold]Examples[/bold]

      measurement-updates watch
      measurement-updates watch --rejected-only --from-beginning
      measurement-updates watch --json | jq .measurement.name
      measurement-updates watch --measurement m-1 -n 1 --timeout 30s
    """
    settings = load_settings()
    seconds = _seconds(timeout)
    if updated_only and rejected_only:
        fail("expected one of --updated-only and --rejected-only, found both", 2)
    topics = [settings.worker_updated_topic] * (not rejected_only)
    topics += [settings.worker_rejected_topic] * (not updated_only)
    watching = _Watching(settings, topics, measurement, count, json)
    signal.signal(signal.SIGINT, _leave)
    try:
        asyncio.run(watching.run(from_beginning, seconds))
    except BrokenPipeError:
        # Who read our output has had enough (head): that is no failure. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if count is not None and watching.shown < count:
        fail(f"expected {count} answers within {timeout}, found {watching.shown}")


def _leave(*_: object) -> None:
    """At once: it has nothing to hand back, and a client's orderly end may wait for a broker."""
    sys.stdout.flush()
    os._exit(130)


def _seconds(timeout: str | None) -> float | None:
    if timeout is None:
        return None
    try:
        duration: timedelta = TypeAdapter[Any](Duration).validate_python(timeout)
    except ValidationError:
        fail(f"--timeout: expected seconds, or a number with a unit: 20s, 15m; found {timeout}", 2)
    return duration.total_seconds()


class _Watching:
    def __init__(
        self, settings: Settings, topics: list[str], measurement: str | None, count: int | None, json: bool
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._measurement = measurement
        self._count = count
        self._json = json
        self.shown = 0

    async def run(self, from_beginning: bool, seconds: float | None) -> None:
        """Until enough is shown or the time is over."""
        ends = None if seconds is None else time.monotonic() + seconds
        async with answer_consumer(self._settings, self._topics, from_beginning=from_beginning) as consumer:
            if err.is_terminal:
                err.print(f"[dim]watching {' and '.join(self._topics)}; Ctrl-C ends[/dim]")
            while True:
                left = 1.0 if ends is None else min(1.0, ends - time.monotonic())
                if left <= 0 or _nobody_reads():
                    return
                fetched = await consumer.getmany(timeout_ms=max(1, int(left * 1000)))
                # Two topics have no common order; the time at which they were appended is the nearest to one.
                records = [record for records in fetched.values() for record in records]
                for record in sorted(records, key=lambda record: int(record.timestamp)):
                    self._show(record)
                    if self.shown == self._count:
                        return

    def _show(self, record: "ConsumerRecord[bytes, bytes]") -> None:
        try:
            answer = read_answer(record, self._settings)
        except UnreadableEvent as error:
            place = f"{record.topic}/{record.partition}/{record.offset}"
            err.print(f"{place} isn't an answer of the worker: {error}", markup=False)
            return
        if self._measurement is not None and measurement_of(answer) != self._measurement:
            return
        self.shown += 1
        if self._json:
            sys.stdout.write(orjson.dumps(as_json(answer, record)).decode() + "\n")
            sys.stdout.flush()
        elif out.is_terminal:
            line = describe(answer, record.timestamp)
            rejected = isinstance(answer, UpdateRejected)
            out.print(
                line, soft_wrap=False, no_wrap=not rejected, overflow="fold" if rejected else "ellipsis"
            )
        else:
            sys.stdout.write(describe(answer, record.timestamp).plain + "\n")
            sys.stdout.flush()


def _nobody_reads() -> bool:
    """Whether who read our output is gone, seen without writing (as tail -f does): the next answer may be long in coming."""
    if not stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are reported whatever is asked for
    return any(event & select.POLLERR for _, event in poll.poll(0))


def read_answer(record: "ConsumerRecord[bytes, bytes]", settings: Settings) -> Answer:
    """Raises UnreadableEvent."""
    if record.topic == settings.worker_updated_topic:
        return read_updated(record.key, record.value, record.headers)
    return read_rejected(record.key, record.value, record.headers)


def measurement_of(answer: Answer) -> str:
    """The measurement's id; of a rejected record its key, as far as that is text."""
    if isinstance(answer, MeasurementUpdated):
        return answer.measurement_id
    return (answer.key or b"").decode("utf-8", "backslashreplace")


def describe(answer: Answer, timestamp: int) -> Text:
    """One line. `timestamp`: when it was appended, in ms since 1970; shown in local time."""
    time_of_day = datetime.fromtimestamp(timestamp / 1000, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    line = Text.assemble((time_of_day, "dim"), " ", printable(measurement_of(answer)) or "(no key)", " ")
    if isinstance(answer, UpdateRejected):
        return line.append(answer.code, "red").append(f": {printable(answer.message)}")
    line.append(f"r{answer.revision}", "bold").append(" ")
    line.append(", ".join(answer.changed) or "nothing changed", "green" if answer.changed else "dim")
    return line.append(f"  {printable(answer.causation_source)} {printable(answer.causation_id)}", "dim")


def printable(text: str) -> str:
    """Without what would move the cursor or ring the bell: producers' text is shown on an operator's terminal."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def as_json(answer: Answer, record: "ConsumerRecord[bytes, bytes]") -> dict[str, Any]:
    """The whole event. Names are the wire's; bytes are text where they are UTF-8, else base64 in `…_base64`."""
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    if isinstance(answer, MeasurementUpdated):
        return {
            "answer": "updated",
            "id": answer.id,
            "source": answer.source,
            "time": answer.time,
            "measurement_id": answer.measurement_id,
            "revision": answer.revision,
            "changed": answer.changed,
            "causationid": answer.causation_id,
            "causationsource": answer.causation_source,
            "traceparent": answer.traceparent,
            "measurement": orjson.Fragment(record.value or b"null"),  # as it was sent
            "record": place,
        }
    headers = []
    for name, value in answer.headers:
        headers.append({"name": name, **as_bytes("value", value)})
    return {
        "answer": "rejected",
        "code": answer.code,
        "message": answer.message,
        "violations": [
            {"path": one.path, "expected": one.expected, "found": one.found} for one in answer.violations
        ],
        "total": answer.total,
        "topic": answer.topic,
        "partition": answer.partition,
        "offset": answer.offset,
        "timestamp": answer.timestamp,
        "truncated": answer.truncated,
        **as_bytes("key", answer.key),
        **as_bytes("value", answer.value),
        "headers": headers,
        "record": place,
    }


def as_bytes(name: str, value: bytes | None) -> dict[str, str | None]:
    """Text where it is UTF-8, else base64 in `…_base64`."""
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}
