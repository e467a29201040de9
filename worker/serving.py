"""HTTP, where WORKER_HTTP says so: what orchestrators, Prometheus and people ask this worker.

| path | answer |
|---|---|
| /health/live | 200, or 503 where a restart would help |
| /health/ready | 200, or 503 with the reasons; every lane's state |
| /metrics | Prometheus' text format |
| /asyncapi | the AsyncAPI document, with this worker's topics |
| / | these paths |

Served by the worker's own event loop: whoever gets no answer knows that the loop hangs.
"""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import structlog
import uvicorn
from faststream.asgi import AsgiFastStream, AsgiResponse, get
from faststream.asgi.types import ASGIApp, Scope
from prometheus_client import CONTENT_TYPE_LATEST

from worker.errors import Fatal
from worker.metrics import Metrics
from worker.observer import Observer
from worker.settings import Settings, http_address

_PLAIN = {"content-type": "text/plain; charset=utf-8"}

log = structlog.get_logger()


@asynccontextmanager
async def serving(
    settings: Settings, observer: Observer, metrics: Metrics, ended: Callable[["asyncio.Task[None]"], None]
) -> AsyncIterator[None]:
    """While the block runs; not at all without WORKER_HTTP. Raises Fatal where the address can't be had.

    `ended` hears of it when the server has."""
    if settings.worker_http is None:
        yield
        return
    listening = _listen(settings.worker_http)
    # no lifespan: the broker is the worker's to start and stop; no logs and no signal handlers of its own
    server = _Server(
        uvicorn.Config(
            AsgiFastStream(
                asgi_routes=_routes(settings, observer, metrics), logger=logging.getLogger(__name__)
            ),
            lifespan="off",
            http="h11",
            ws="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
    running = asyncio.create_task(server.serve([listening]))
    running.add_done_callback(ended)
    host, port = listening.getsockname()[:2]
    log.info("worker serves HTTP", address=f"{host}:{port}")
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([running], timeout=2)
        listening.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the worker's."""
        yield


def _listen(address: str) -> socket.socket:
    host, port = http_address(address)
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, reuse_port=False
        )
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]  # what it was doing is known
        raise Fatal(
            f"WORKER_HTTP: expected an address of this machine that is free, found {address}: {why}."
            " Choose another port (each worker of a machine needs one of its own; 0 takes any that is free), stop what"
            f" has it (`ss -ltnp 'sport = :{port}'` names it), or leave WORKER_HTTP out"
        ) from error


def _routes(settings: Settings, observer: Observer, metrics: Metrics) -> Sequence[tuple[str, ASGIApp]]:
    asyncapi = _json(200, _asyncapi(settings))

    @get
    async def live(_: Scope) -> AsgiResponse:
        health = observer.health()
        return _json(200 if health.live else 503, {"live": health.live, "reasons": health.hung})

    @get
    async def ready(_: Scope) -> AsgiResponse:
        health = observer.health()
        lanes = [_rounded(asdict(lane)) for lane in observer.facts()]
        found = {
            "ready": health.ready,
            "phase": observer.phase,
            "reasons": health.unready,
            "lanes": lanes,
        }
        return _json(200 if health.ready else 503, found)

    @get
    async def prometheus(_: Scope) -> AsgiResponse:
        return AsgiResponse(metrics.text(), 200, {"content-type": CONTENT_TYPE_LATEST})

    @get
    async def document(_: Scope) -> AsgiResponse:
        return asyncapi

    @get
    async def index(_: Scope) -> AsgiResponse:
        return AsgiResponse("".join(f"{path}\n" for path, _ in paths).encode(), 200, _PLAIN)

    paths: list[tuple[str, ASGIApp]] = [
        ("/health/live", live),
        ("/health/ready", ready),
        ("/metrics", prometheus),
        ("/asyncapi", document),
    ]
    return [*paths, ("/", index)]


def _json(status: int, body: Any) -> AsgiResponse:
    text = json.dumps(body, ensure_ascii=False, indent=2) + "\n"
    return AsgiResponse(
        text.encode(), status, {"content-type": "application/json", "cache-control": "no-store"}
    )


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 1) if isinstance(value, float) else value for name, value in facts.items()}


def _asyncapi(settings: Settings) -> dict[str, Any]:
    """The committed document, with the names of this worker's topics in place of the defaults."""
    document: dict[str, Any] = json.loads((files("contracts.schemas") / "asyncapi.json").read_text("utf-8"))
    names = {
        "updates": settings.worker_updates_topic,
        "updated": settings.worker_updated_topic,
        "rejected": settings.worker_rejected_topic,
    }
    about = document["info"]
    about["description"] = about["description"].replace(
        "with the default names of its", "with the names of its"
    )
    for channel, name in names.items():
        document["channels"][channel]["address"] = name
        document["channels"][channel]["bindings"]["kafka"]["topic"] = name
    return document
