"""What can go wrong, as types.

WorkerError
├── SettingsError          the environment is wrong: exit 2, say what was expected
├── Fatal                  the process can't do its job and a restart alone won't help: exit 1
├── LaneStopped            this partition waits for an operator (or for a time); the others go on
├── Superseded             another owner has taken this partition over: stop, don't retry before the group confirms us
└── DependencyAway         Kafka or Postgres is away or refuses for now: wait, back off, go on
"""

BY_ITSELF = "nothing, where it is short: it goes on by itself. Else "
"""How `do` begins where a worker waits. A command doesn't: who runs it does the rest at once."""

KAFKA_AWAY = f"{BY_ITSELF}see that the brokers (KAFKA_BOOTSTRAP_SERVERS) are up, and reachable from here"


class WorkerError(Exception):
    """Base of everything this worker raises on purpose. A message says what to do, or `do` does."""

    do = ""

    def __init__(self, message: str = "", *, do: str = "") -> None:
        super().__init__(message)
        if do:
            self.do = do


class SettingsError(WorkerError):
    """A setting is missing or wrong."""


class Fatal(WorkerError):
    """Goes on only after somebody has changed something: the process exits 1 with this message."""


class LaneStopped(WorkerError):
    """One partition can't go on without an operator's decision; the message says which decisions there are."""


class Superseded(WorkerError):
    """Postgres (epoch) or Kafka (fencing) says that another worker owns the partition by now."""

    do = "nothing, where it is once or twice: the group decides who goes on"


class DependencyAway(WorkerError):
    """Kafka or Postgres doesn't answer, or refuses for a while. Always worth another try."""

    do = f"{BY_ITSELF}see that Kafka and Postgres are up, and reachable from here"


def with_what_to_do(error: WorkerError) -> str:
    """For who runs a command, where a server is away; other messages say it themselves."""
    if not isinstance(error, DependencyAway) or not error.do:
        return str(error)
    do = error.do.removeprefix(BY_ITSELF)
    return f"{str(error).rstrip('.')}.\n{do[0].upper()}{do[1:]}."
