"""`demo`."""

from worker.cli.terminal import fail


def demo() -> None:
    """To come."""
    fail("not built yet")
