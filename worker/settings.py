"""Settings: from the environment (and `.env`), frozen, validated once, all violations reported together."""

import re
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.errors import SettingsError

_DURATIONS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "kb": 1000, "mb": 1000**2, "gb": 1000**3}


def _duration(value: Any) -> Any:
    """`"90"` (seconds), `"20s"`, `"15m"`, `"12h"`, `"90d"` → timedelta."""
    if isinstance(value, timedelta):
        return value
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?", str(value).strip().lower())
    if not found:
        raise ValueError("expected seconds, or a number with a unit: 20s, 15m, 12h, 90d")
    return timedelta(seconds=float(found[1]) * _DURATIONS[found[2] or "s"])


def _size(value: Any) -> Any:
    """`"1048576"` (bytes), `"512KiB"`, `"1MiB"` → int."""
    found = re.fullmatch(r"([0-9]+)\s*(b|[kmg]i?b)?", str(value).strip().lower())
    if not found:
        raise ValueError("expected bytes, or a number with a unit: 512KiB, 1MiB")
    return int(found[1]) * _SIZES[found[2] or "b"]


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]


def _servers(value: str) -> str:
    for server in value.split(","):
        _, _, port = server.strip().rpartition(":")
        if not re.fullmatch(r"\[?[^\s\[\]/]+\]?:[0-9]{1,5}", server.strip()) or not 0 < int(port) < 65_536:
            raise ValueError("expected brokers as host:port, comma-separated")
    return value


def _dsn(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        hosts = parts.netloc.rpartition("@")[2].split(
            ","
        )  # there may be several, or none (a socket's directory)
        ports = [urlsplit(f"//{host}").port for host in hosts]
        well_formed = parts.scheme in ("postgresql", "postgres") and 0 not in ports
    except ValueError:  # a port that is none
        well_formed = False
    if not well_formed:
        raise ValueError("expected postgresql://user:password@host:port/name")
    return value


def _http(value: str) -> str:
    http_address(value)
    return value


def http_address(value: str) -> tuple[str, int]:
    """`0.0.0.0:8080`, `[::1]:8080` → host and port. Raises ValueError."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s\[\]/:]+):([0-9]{1,5})", value.strip())
    if not found or int(found[2]) > 65_535:
        raise ValueError("expected host:port: 0.0.0.0:8080, 127.0.0.1:8080 or [::]:8080")
    return found[1].strip("[]"), int(found[2])


Servers = Annotated[str, AfterValidator(_servers)]
HttpAddress = Annotated[str, AfterValidator(_http)]
Dsn = Annotated[SecretStr, AfterValidator(_dsn)]
TopicName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]


class Settings(BaseSettings):
    """Every setting, under its environment variable's name (in lower case here)."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    kafka_bootstrap_servers: Servers | None = Field(
        None, description="Kafka brokers, host:port, comma-separated"
    )
    database_url: Dsn | None = Field(
        None, description="the Postgres database, postgresql://user:password@host:port/name"
    )
    worker_group: str = Field("measurement-update-worker", min_length=1, description="consumer group")
    worker_updates_topic: TopicName = Field("measurement-updates", description="input topic")
    worker_updated_topic: TopicName = Field("measurement-updated", description="topic of the answers")
    worker_rejected_topic: TopicName = Field(
        "measurement-updates-rejected", description="topic of the rejected"
    )
    worker_partitions: int = Field(
        4, ge=1, le=10_000, description="partitions of a topic that `topics` creates"
    )
    worker_replication: int | None = Field(
        None,
        ge=1,
        le=100,
        description="replicas of a topic that `topics` creates; without it 3, or as many as there are brokers",
    )
    worker_source: str = Field(
        "measurement-update-worker", min_length=1, description="CloudEvents source of the answers"
    )
    worker_session_timeout_ms: int = Field(
        10_000,
        ge=1_000,
        le=1_800_000,
        description="a worker that is silent for this long loses its partitions (ms)",
    )
    worker_max_event_bytes: Size = Field(
        1024**2,
        ge=1024,
        le=64 * 1024**2,
        description="a larger value (decompressed) is rejected as too_large",
    )
    worker_identity_retention: Duration = Field(
        timedelta(days=90), description="the same event within this time is a duplicate"
    )
    worker_history_retention: Duration = Field(
        timedelta(days=90), description="stored answers are kept this long"
    )
    worker_drain_timeout: Duration = Field(
        timedelta(seconds=20), description="SIGTERM ends the process within this time, whatever is away"
    )
    worker_batch_records: int = Field(
        2_000, ge=1, le=100_000, description="at most this many records in one transaction"
    )
    worker_batch_bytes: Size = Field(
        8 * 1024**2,
        ge=1024,
        description="at most this many bytes of values in one transaction (one record at least)",
    )
    worker_http: HttpAddress | None = Field(
        None,
        description="host:port of /health/live, /health/ready, /metrics and /asyncapi (port 0: any free one, its log"
        " says which); without it nothing is served",
    )
    worker_log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error"
    )

    @model_validator(mode="after")
    def _topics_differ(self) -> "Settings":
        topics = (self.worker_updates_topic, self.worker_updated_topic, self.worker_rejected_topic)
        if len(set(topics)) != len(topics):
            raise ValueError(f"the three topics must differ, found {', '.join(topics)}")
        return self

    @property
    def bootstrap_servers(self) -> str:
        """Raises SettingsError where the variable is missing."""
        if self.kafka_bootstrap_servers is None:
            raise SettingsError(_NO_KAFKA)
        return self.kafka_bootstrap_servers

    @property
    def dsn(self) -> str:
        """Raises SettingsError where the variable is missing."""
        if self.database_url is None:
            raise SettingsError(_NO_DATABASE)
        return self.database_url.get_secret_value()


_NO_KAFKA = "KAFKA_BOOTSTRAP_SERVERS: expected brokers as host:port, found nothing"
_NO_DATABASE = "DATABASE_URL: expected postgresql://user:password@host:port/name, found nothing"


class _WithServers(Settings):
    """Settings of a command that needs both servers: what is missing is a violation like any other."""

    kafka_bootstrap_servers: Servers
    database_url: Dsn


def load_settings(*, with_servers: bool = False, **overrides: Any) -> Settings:
    """Read the environment and `.env`; `overrides` win. Raises SettingsError naming every violation."""
    try:
        return (_WithServers if with_servers else Settings)(**overrides)
    except ValidationError as error:
        missing = {"KAFKA_BOOTSTRAP_SERVERS": _NO_KAFKA, "DATABASE_URL": _NO_DATABASE}
        lines = []
        for violation in error.errors():
            name = ".".join(str(part) for part in violation["loc"]).upper()
            message = violation["msg"].removeprefix("Value error, ")
            if violation["type"] == "missing":
                lines.append(missing[name])
            elif name in ("", "DATABASE_URL"):  # what was found holds a secret: all settings, or the password
                lines.append(f"{name}: {message}".removeprefix(": "))
            else:
                lines.append(f"{name}: {message}, found {violation['input']!r}")
        raise SettingsError("\n".join(lines)) from None
