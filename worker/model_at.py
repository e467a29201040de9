"""A measurement as it was: at a revision, or at a time."""

from dataclasses import dataclass
from datetime import UTC, datetime

from worker.errors import Fatal
from worker.history import Key, Link, MeasurementHistory
from worker.measurement import timestamp_of


@dataclass(frozen=True, slots=True)
class ModelAt:
    """The response model then."""

    revision: int
    model: bytes
    link: Link | None
    """The event that left it so; None: it is the row as it is now."""
    note: str = ""
    """What can't be known."""


async def model_at(history: MeasurementHistory, at: int | datetime) -> ModelAt:
    """Raises Fatal where that isn't kept, saying what is."""
    if isinstance(at, int):
        return await _at_revision(history, at)
    return await _at_time(history, at)


async def _at_revision(history: MeasurementHistory, revision: int) -> ModelAt:
    name, present = history.measurement.id, history.measurement.revision
    if revision > present:
        raise Fatal(f"measurement {name} is at revision {present}: expected 0 to {present}, found {revision}")
    if revision == present:
        return _now(history)
    later: Key | None = None
    async for key in history.keys():
        if key.revision == revision:
            return await _as_left(history, key)
        if key.revision < revision:
            after = f"; the next one that is: {later.revision}" if later else ""
            raise Fatal(
                f"revision {revision} of measurement {name} was made elsewhere (by something else than an event): what it"
                f" was isn't kept. The one before it that is: {key.revision}{after}"
            )
        later = key
    raise Fatal(f"revision {revision} of measurement {name} isn't kept: {_how_far(later)}")


async def _at_time(history: MeasurementHistory, at: datetime) -> ModelAt:
    name, milliseconds = history.measurement.id, int(at.timestamp() * 1000)
    if history.created_at is not None and timestamp_of(milliseconds) < history.created_at:
        raise Fatal(f"measurement {name} was created after that time")
    positions = [position for position in history.measurement.positions.values() if position is not None]
    written = max((int.from_bytes(position[:8], "big") for position in positions), default=0)
    later: Key | None = None
    async for key in history.keys():
        if key.arrival > milliseconds:
            later = key
            continue
        if later is None and key.revision < history.measurement.revision and written <= milliseconds:
            return _now(history)
        left = await _as_left(history, key)
        next_one = history.measurement.revision if later is None else later.revision - later.changed
        if next_one > key.revision:
            note = "it was changed elsewhere after that event: whether before or after this time isn't known"
            return ModelAt(left.revision, left.model, left.link, note)
        return left
    if later is None and history.measurement.last_answer is None and written <= milliseconds:
        return _now(history)
    raise Fatal(f"what measurement {name} was at that time isn't kept: {_how_far(later)}")


def _how_far(oldest: Key | None) -> str:
    if oldest is None:
        return "no event was applied to it, or retention (WORKER_HISTORY_RETENTION) has taken its history"
    begins = datetime.fromtimestamp(oldest.arrival / 1000, UTC).isoformat(timespec="milliseconds")
    why = (
        "its first event" if oldest.previous is None else "what retention (WORKER_HISTORY_RETENTION) has left"
    )
    return f"its history begins with {why}, at revision {oldest.revision}, {begins}"


def _now(history: MeasurementHistory) -> ModelAt:
    model = history.present
    if model is None:
        raise Fatal(
            f"measurement {history.measurement.id} can't be expressed in the response model: something else has written"
            " it so"
        )
    return ModelAt(history.measurement.revision, model, None)


async def _as_left(history: MeasurementHistory, key: Key) -> ModelAt:
    found = await history.links([(key.lane, key.offset)])
    if not found:
        raise Fatal("retention has just taken it")
    link = found[0][1]
    return ModelAt(link.revision, link.answer, link)
