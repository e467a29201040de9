"""The stages of a batch, by name. Whoever wants to know how long each takes hands a `Watching` in."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

Stage = Literal["decode", "plan", "apply", "emit"]
"""`apply` is one Postgres transaction, with `plan` inside; `emit` is one Kafka transaction."""

Watching = Callable[[Stage], AbstractContextManager[None]]


def unwatched(_: Stage) -> AbstractContextManager[None]:
    return nullcontext()
