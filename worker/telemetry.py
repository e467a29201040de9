"""Logs: readable on a terminal, one JSON object a line elsewhere."""

import logging
import sys

import structlog


def configure_logs(level: str) -> None:
    """For the whole process, the libraries' own logs included (theirs from WARNING on)."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    numeric = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, _of_a_library],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(numeric, logging.WARNING), force=True)


def _of_a_library(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What aiokafka or asyncio says of its trouble is no news of the worker's, and nothing to act on by itself."""
    if not str(event.get("logger", "")).startswith("worker."):
        event["do"] = (
            "nothing by itself: what it means for the work, the worker's own events say (worker …, lane …)"
        )
    return event
