"""What the libraries log again and again while a broker is away: aiokafka, several hundred lines a second."""

import logging
import time


class HoldBackRepeats(logging.Filter):
    """Lets each message (its text before arguments are filled in) through once in `seconds`."""

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._let_through: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message, now = (record.name, str(record.msg)), time.monotonic()
        if now - self._let_through.get(message, -self._seconds) < self._seconds:
            return False
        if len(self._let_through) > 1_000:  # messages that were put together before they were handed over
            self._let_through.clear()
        self._let_through[message] = now
        return True


def hold_back_repeats() -> None:
    """For whatever goes to the root logger's handlers; the worker's own log (structlog) doesn't."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(HoldBackRepeats())
