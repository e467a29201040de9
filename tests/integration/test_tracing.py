"""What is traced, as a collector receives it: a batch with links to its producers' traces, Postgres and Kafka below it."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.faults.states import Log, held, stops
from tests.system import System

TOP = Path(__file__).parents[2]


class Collector:
    """OTLP over HTTP."""

    def __init__(self) -> None:
        self.address = ""
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def receive(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services.add(attributes(resource.resource)["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.receive(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()


def attributes(of: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


def traceparent(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


def linked(span: Span) -> list[int]:
    return [int.from_bytes(link.trace_id) for link in span.links]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log(tmp_path / "log") as opened:
        yield opened


async def test_a_batch_is_linked_to_its_producers_and_its_transactions_are_below_it(
    lab: System, log: Log
) -> None:
    await lab.seed("m-1")
    sent = [
        await lab.update("m-1", {"notes": f"{number}"}, id=f"{number}", traceparent=traceparent(number))
        for number in (1, 2)
    ]
    await lab.publish("m-1", {"notes": "untraced"})
    await lab.publish("m-1", b"{", [("traceparent", traceparent(3).encode()), ("x", None)])
    await lab.publish("m-1", {"notes": "odd"}, [("traceparent", b"\xff00-")])
    with (
        collecting() as collector,
        lab.process(log.file, OTEL_EXPORTER_OTLP_ENDPOINT=collector.address) as worker,
    ):
        await lab.settled()
        await stops(worker)
    assert collector.services == {lab.settings.worker_source}

    partition = str(sent[0].partition)
    batches = [
        span
        for span in collector.named(f"process {lab.updates}")
        if attributes(span)["messaging.destination.partition.id"] == partition
    ]
    assert sum(attributes(span)["messaging.batch.message_count"] for span in batches) == 5
    assert sorted(number for span in batches for number in linked(span)) == [1, 2, 3]
    for span in batches:
        assert span.kind == Span.SPAN_KIND_CONSUMER
        assert attributes(span) | {"messaging.batch.message_count": 0} == {
            "messaging.system": "kafka",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": lab.updates,
            "messaging.destination.partition.id": partition,
            "messaging.consumer.group.name": lab.settings.worker_group,
            "messaging.batch.message_count": 0,
        }
    ids = {span.span_id: span.trace_id for span in batches}
    applies = [span for span in collector.named("apply batch") if span.parent_span_id in ids]
    assert len(applies) == len(batches)
    assert all(ids[span.parent_span_id] == span.trace_id for span in applies)
    assert attributes(applies[0])["db.system.name"] == "postgresql"
    assert applies[0].kind == Span.SPAN_KIND_CLIENT
    sends = [span for span in collector.spans if span.name.startswith("send ") and span.parent_span_id in ids]
    assert sum(attributes(span)["messaging.batch.message_count"] for span in sends) == 5
    assert {1, 2, 3} <= {number for span in sends for number in linked(span)}
    assert all(ids[span.parent_span_id] == span.trace_id for span in sends)

    answers = await lab.answers_to(*sent)
    assert [answer.text("traceparent") for answer in answers] == [traceparent(1), traceparent(2)]


async def test_a_span_has_at_most_128_links_and_an_error_says_only_what_kind_it_is(
    lab: System, log: Log
) -> None:
    await lab.seed("m-1")
    with (
        collecting() as collector,
        lab.process(
            log.file,
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.address}/v1/traces",
            OTEL_SERVICE_NAME="the-worker",
        ) as worker,
    ):
        await log.says("lane running")
        async with held(lab, "SELECT FROM cell_measurements FOR UPDATE"):
            for number in range(1, 301):
                headers = [("traceparent", traceparent(number).encode())]
                await lab.producer.send(lab.updates, key=b"m-1", value=b'{"notes": "x"}', headers=headers)
            await log.says("lane waiting")
        await lab.settled()
        await stops(worker)
    assert collector.services == {"the-worker"}
    assert max(len(span.links) for span in collector.spans) == 128
    failed = [span for span in collector.named("apply batch") if span.status.code == Status.STATUS_CODE_ERROR]
    assert {attributes(span)["error.type"] for span in failed} == {"postgres 55"}
    assert not any(span.events or span.status.message for span in failed)


async def test_a_collector_that_is_away_keeps_nothing_up(lab: System, log: Log) -> None:
    await lab.seed("m-1")
    await lab.publish("m-1", {"notes": "x"})
    with lab.process(log.file, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") as worker:
        await lab.settled()
        await stops(worker)
    assert log.said("worker stopped") == 1


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(TOP), **environment}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip


BUILD = """
import os, sys
{before}
import worker.app
from worker.settings import load_settings
from worker.tracing import tracing
settings = load_settings(_env_file=None, database_url="postgresql://a@b/c")
print(tracing(settings, os.environ), any(name.startswith("opentelemetry.sdk") for name in sys.modules))
"""


def test_where_nobody_asks_for_traces_nothing_of_opentelemetry_is_imported() -> None:
    for environment in (
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
    ):
        assert run(BUILD.format(before=""), **environment).stdout == "None False\n"


@pytest.mark.parametrize(
    ("before", "environment", "words"),
    [
        (
            "sys.modules['opentelemetry'] = None",
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"},
            "pip install",
        ),
        (
            "",
            {"OTEL_TRACES_EXPORTER": "jaeger"},
            "OTEL_TRACES_EXPORTER: expected otlp or none, found 'jaeger'",
        ),
        (
            "",
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "expected http/protobuf, found 'grpc'",
        ),
    ],
)
def test_traces_that_cannot_be_had_are_said_and_no_reason_to_stop(
    before: str, environment: dict[str, str], words: str
) -> None:
    done = run(BUILD.format(before=before), **environment)
    assert "no traces" in done.stdout
    assert words in done.stdout
    assert done.stdout.endswith("None False\n")
