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
        load_settings().expect_servers()
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
