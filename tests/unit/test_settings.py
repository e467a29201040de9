"""Settings: units, and every violation at once."""

from datetime import timedelta

import pytest
from typer.testing import CliRunner

from worker.cli import app
from worker.errors import SettingsError
from worker.settings import load_settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "WORKER_PARTITIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(str(tmp_path))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90), ("20s", 20), ("15m", 900), ("12h", 43_200), ("90d", 7_776_000), ("500ms", 0.5)],
)
def test_durations_have_units(written: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_IDENTITY_RETENTION", written)
    assert load_settings().worker_identity_retention == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("written", "size"), [("2048", 2048), ("512KiB", 524_288), ("1MiB", 1_048_576), ("1MB", 10**6)]
)
def test_sizes_have_units(written: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_MAX_EVENT_BYTES", written)
    assert load_settings().worker_max_event_bytes == size


def test_every_violation_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_PARTITIONS", "many")
    monkeypatch.setenv("WORKER_DRAIN_TIMEOUT", "5 parsecs")
    monkeypatch.setenv("WORKER_UPDATES_TOPIC", "no spaces allowed")
    with pytest.raises(SettingsError) as error:
        load_settings()
    for name in ("WORKER_PARTITIONS", "WORKER_DRAIN_TIMEOUT", "WORKER_UPDATES_TOPIC"):
        assert name in str(error.value)


def test_the_three_topics_must_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_UPDATED_TOPIC", "measurement-updates")
    with pytest.raises(SettingsError, match="must differ"):
        load_settings()


def test_run_names_both_servers_that_are_missing() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(with_servers=True)
    assert "KAFKA_BOOTSTRAP_SERVERS" in str(error.value)
    assert "DATABASE_URL" in str(error.value)


def test_a_file_env_counts_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    with open(f"{tmp_path}/.env", "w") as file:
        file.write("WORKER_GROUP=from-the-file\nWORKER_SOURCE=from-the-file\n")
    monkeypatch.setenv("WORKER_SOURCE", "from-the-environment")
    settings = load_settings()
    assert (settings.worker_group, settings.worker_source) == ("from-the-file", "from-the-environment")


def test_settings_lists_each_with_its_meaning_and_masks_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://lab:secret@db.example/cells")
    shown = CliRunner().invoke(app, ["settings"]).output
    assert "postgresql://lab:***@db.example/cells" in shown
    assert "secret" not in shown
    assert "WORKER_DRAIN_TIMEOUT=20s  # SIGTERM ends the process" in shown


@pytest.mark.parametrize("command", ["settings", "run"])
def test_no_message_shows_the_password(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://lab:secret@db.example/cells?sslpassword=secret")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    monkeypatch.setenv("WORKER_UPDATED_TOPIC", "measurement-updates")
    result = CliRunner().invoke(app, [command])
    assert isinstance(result.exception, SettingsError)
    assert "must differ" in str(result.exception)
    assert "secret" not in result.output + str(result.exception)


def test_a_password_in_the_query_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "DATABASE_URL", "postgresql://u:secret@h/db?password=secret&sslmode=require&sslpassword=secret"
    )
    shown = CliRunner().invoke(app, ["settings"]).output
    assert "postgresql://u:***@h/db?password=***&sslmode=require&sslpassword=***" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    "dsn", ["mysql://u:secret@h/db", "postgresql://u:secret@h:99999/db", "h:5432/secret", ""]
)
def test_a_database_url_that_is_none_is_told_at_once_and_not_shown(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    monkeypatch.setenv("WORKER_PARTITIONS", "0")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "DATABASE_URL: expected postgresql://user:password@host:port/name" in str(error.value)
    assert "WORKER_PARTITIONS" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql:///cells?host=/run/postgresql",
        "postgres://u:p@a:5432,b:5433/cells",
        "postgresql://u:p@[::1]/cells",
    ],
)
def test_a_database_url_may_name_a_socket_or_several_hosts(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    assert load_settings().dsn == dsn


@pytest.mark.parametrize("servers", ["nohost", "a:1,b", "a:0", "a:99999", "http://a:9092", ""])
def test_brokers_are_host_and_port(servers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", servers)
    with pytest.raises(SettingsError, match="KAFKA_BOOTSTRAP_SERVERS: expected brokers as host:port"):
        load_settings()


@pytest.mark.parametrize("servers", ["localhost:9092", "a.example:9092,b.example:9093", "[::1]:9092"])
def test_brokers_may_be_several(servers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", servers)
    assert load_settings().bootstrap_servers == servers
