"""What can go wrong, as types.

WorkerError
├── SettingsError          the environment is wrong: exit 2, say what was expected
├── Fatal                  the process can't do its job and a restart alone won't help: exit 1
├── LaneStopped            this partition waits for an operator (or for a time); the others go on
├── Superseded             another owner has taken this partition over: stop, don't retry before the group confirms us
└── DependencyAway         Kafka or Postgres is away or refuses for now: wait, back off, go on
"""


class WorkerError(Exception):
    """Base of everything this worker raises on purpose."""


class SettingsError(WorkerError):
    """A setting is missing or wrong."""


class Fatal(WorkerError):
    """Goes on only after somebody has changed something: the process exits 1 with this message."""


class LaneStopped(WorkerError):
    """One partition can't go on without an operator's decision; the message says which decisions there are."""


class Superseded(WorkerError):
    """Postgres (epoch) or Kafka (fencing) says that another worker owns the partition by now."""


class DependencyAway(WorkerError):
    """Kafka or Postgres doesn't answer, or refuses for a while. Always worth another try."""
