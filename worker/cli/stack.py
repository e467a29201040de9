"""`measurement-updates stack`: Kafka and Postgres in the foreground, for development."""

import json
import shlex
import signal
import sys
import time
from typing import Annotated

import typer
from rich.console import Console

from worker.settings import load_settings
from worker.stack import running_stack


def stack(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of NAME=value lines.")
    ] = False,
    heap: Annotated[str, typer.Option(help="Heap of an embedded broker's JVM.")] = "512m",
) -> None:
    """Start Kafka and Postgres, print KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL; Ctrl-C or SIGTERM stops them.

    What the environment names already is used as it is. All else is new and empty, and gone at the end.
    Standard output has the two variables only, so that a script can read it.
    """
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Explicitly: a shell starts a background job with SIGINT ignored, and Python leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    up = False
    try:
        with running_stack(load_settings(), progress=console, heap=heap) as running:
            variables = {
                "KAFKA_BOOTSTRAP_SERVERS": running.kafka_bootstrap_servers,
                "DATABASE_URL": running.database_url,
            }
            up = True
            if as_json:
                print(json.dumps(variables), flush=True)
            else:
                for name, value in variables.items():
                    print(f"{name}={shlex.quote(value)}", flush=True)
            console.print(
                f"Kafka ({running.kafka_origin}) and Postgres ({running.postgres_origin}) are running."
                " Ctrl-C stops and removes them.",
                highlight=False,
                soft_wrap=True,
            )
            try:
                while True:
                    # not signal.pause(): a signal that comes just before it would be slept over
                    time.sleep(0.5)
            finally:
                # Stopping is bounded, and a second Ctrl-C would only cut it short.
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:
        sys.exit(0 if up else 130)
