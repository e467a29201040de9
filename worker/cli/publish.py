"""`publish`."""

from worker.cli.terminal import fail


def publish() -> None:
    """To come."""
    fail("not built yet")
