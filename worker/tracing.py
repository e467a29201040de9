"""Traces (OpenTelemetry): what a batch does, linked to the traces of the producers whose records it takes.

A batch is one span, `process <input topic>`, with a link to each record's `traceparent`; its Postgres transactions and
the Kafka transactions that send its answers are children of it. A record's `traceparent` travels on unchanged, so that
a subscriber's span belongs to the producer's trace, and its producer's span leads to ours.

On where the environment names somewhere to send to, by OpenTelemetry's own variables: OTEL_TRACES_EXPORTER=otlp, or an
OTEL_EXPORTER_OTLP_ENDPOINT. Otherwise its SDK isn't even imported. Names: semantic conventions for messaging and
database client spans.
"""

import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from aiokafka import TopicPartition

from worker.answer import Answer
from worker.record import Record
from worker.retry import cause_of
from worker.settings import Settings
from worker.stages import Stage

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Span, SpanContext

log = structlog.get_logger()

_MAX_LINKS = 128
"""Of a span: OpenTelemetry's own limit; what comes after it is dropped there."""
_MAX_PENDING = 64
"""Batches that are decided and not sent: there are never so many."""
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_FLUSH_SECONDS = 1.0


def tracing(settings: Settings, environment: Mapping[str, str]) -> "Tracing | None":
    """None where nobody asked for traces, or where what was asked for isn't there: that is said, and no more. (These
    variables are often set for a whole cluster: they are no reason to stop.)"""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    endpoint = _for_traces(environment, "ENDPOINT")
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or exporter == "none" or not (exporter or endpoint):
        return None
    protocol = _for_traces(environment, "PROTOCOL")
    if exporter not in ("", "otlp"):
        log.warning("no traces", why=f"OTEL_TRACES_EXPORTER: expected otlp or none, found {exporter!r}")
        return None
    if protocol not in ("", "http/protobuf"):
        log.warning(
            "no traces",
            why=f"OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, found {protocol!r}",
            do="set it for this worker, and the endpoint to the collector's port for HTTP (4318)",
        )
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(
            "no traces",
            why="the environment asks for them (OTEL_…), OpenTelemetry isn't installed",
            do="pip install 'measurement-updates[tracing]', or set OTEL_TRACES_EXPORTER=none for this worker",
        )
        return None
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    resource = Resource.create({} if named else {"service.name": settings.worker_source})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider, settings)


def _for_traces(environment: Mapping[str, str], name: str) -> str:
    return environment.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environment.get(
        f"OTEL_EXPORTER_OTLP_{name}", ""
    )


class Tracing:
    """One a process, built by the composition root."""

    def __init__(self, provider: "TracerProvider", settings: Settings) -> None:
        self._provider = provider
        self._settings = settings

    def lane(self, tp: TopicPartition) -> "LaneSpans":
        return LaneSpans(self._provider, self._settings, tp)

    def stop(self) -> None:
        """What isn't sent yet is sent, in bounded time: blocks for a second at most."""
        # its own bound is 30 s, and a thread pool's threads are waited for when the process ends
        stopping = threading.Thread(target=self._provider.shutdown, daemon=True)
        stopping.start()
        stopping.join(_FLUSH_SECONDS)


class LaneSpans:
    """Those of one lane: one batch is decided at a time, and one transaction of Kafka runs at a time."""

    def __init__(self, provider: "TracerProvider", settings: Settings, tp: TopicPartition) -> None:
        self._tracer = provider.get_tracer("measurement-updates")
        self._tp = tp
        self._batch: Span | None = None
        self._pending: deque[tuple[int, SpanContext]] = deque(maxlen=_MAX_PENDING)
        self._sending: tuple[Sequence[Answer], list[SpanContext]] = ((), [])
        self._kafka: dict[str, Any] = {
            "messaging.system": "kafka",
            "messaging.consumer.group.name": settings.worker_group,
        }
        database = urlsplit(settings.dsn)
        self._postgres: dict[str, Any] = {
            "db.system.name": "postgresql",
            "db.namespace": database.path.strip("/"),
            "db.query.summary": "apply batch",
            **({"server.address": database.hostname} if database.hostname else {}),
        }

    @contextmanager
    def process(self, records: Sequence[Record]) -> Iterator[None]:
        """The batch that is decided now."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        attributes = {
            **self._kafka,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": self._tp.topic,
            "messaging.destination.partition.id": str(self._tp.partition),
            "messaging.batch.message_count": len(records),
        }
        links = _links(dict(record.headers).get("traceparent") for record in records)
        name = f"process {self._tp.topic}"
        try:
            with self._span(name, Context(), SpanKind.CONSUMER, attributes, links) as self._batch:
                yield
        finally:
            self._batch = None

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """A child of the batch; decode and plan are in metrics only."""
        from opentelemetry.trace import SpanKind

        if stage == "apply":
            parent = [] if self._batch is None else [self._batch.get_span_context()]
            with self._span("apply batch", _under(parent), SpanKind.CLIENT, self._postgres):
                yield
        elif stage == "emit":
            with self._send():
                yield
        else:
            yield

    def decided(self, next_offset: int) -> None:
        """Its answers up to there are to be sent."""
        if self._batch is not None:
            self._pending.append((next_offset, self._batch.get_span_context()))

    def emits(self, answers: Sequence[Answer], next_offset: int) -> None:
        """What the next `emit` sends: the answers of one batch or of several, or a part of one."""
        batches: list[SpanContext] = []
        while self._pending:
            end, batch = self._pending[0]
            if batch not in batches:
                batches.append(batch)
            if end > next_offset:
                break
            self._pending.popleft()
            if end == next_offset:
                break
        self._sending = (answers, batches)

    def forget(self) -> None:
        """The lane begins anew: what was decided is sent again by its take-over."""
        self._pending.clear()

    @contextmanager
    def _send(self) -> Iterator[None]:
        from opentelemetry.trace import Link, SpanKind

        answers, batches = self._sending
        topics = sorted({answer.topic for answer in answers})
        attributes = {
            **self._kafka,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.batch.message_count": len(answers),
            **({"messaging.destination.name": topics[0]} if len(topics) == 1 else {}),
        }
        links = [Link(batch) for batch in batches[1:]]
        links += _links(dict(answer.headers).get("traceparent") for answer in answers)
        name = " ".join(["send", *topics])
        with self._span(name, _under(batches), SpanKind.CLIENT, attributes, links[:_MAX_LINKS]):
            yield

    @contextmanager
    def _span(
        self,
        name: str,
        context: "Context",
        kind: Any,
        attributes: Mapping[str, Any],
        links: "Sequence[Link]" = (),
    ) -> "Iterator[Span]":
        """An error's words may quote data: only what kind it is goes out."""
        from opentelemetry.trace import StatusCode

        span = self._tracer.start_span(name, context, kind, attributes, links)
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", cause_of(error))
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            span.end()


def _under(parents: "Sequence[SpanContext]") -> "Context":
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(parents[0]), Context()) if parents else Context()


def _links(traceparents: Iterable[bytes | None]) -> "list[Link]":
    """W3C Trace Context; what isn't one is left out, and so is what comes twice."""
    from opentelemetry.trace import Link, SpanContext, TraceFlags

    links: dict[bytes, Link] = {}
    for traceparent in traceparents:
        if traceparent is None or traceparent in links:
            continue
        parts = _TRACEPARENT.fullmatch(traceparent.decode("ascii", "replace"))
        if parts is None:
            continue
        context = SpanContext(int(parts[1], 16), int(parts[2], 16), True, TraceFlags(int(parts[3], 16)))
        if context.is_valid:
            links[traceparent] = Link(context)
        if len(links) == _MAX_LINKS:
            break
    return list(links.values())
