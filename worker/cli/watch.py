"""`watch`."""

from worker.cli.terminal import fail


def watch() -> None:
    """To come."""
    fail("not built yet")
