"""The command's first lines: what a stop does while everything else is still being imported."""

import os
import signal
import sys


def main() -> None:
    """`measurement-updates`. A worker that is stopped before it has begun has nothing in flight: it ends with 0."""
    if "run" in sys.argv[1:2]:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from worker import cli

    cli.main()
