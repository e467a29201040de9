"""What matters about deploy/, since no Docker daemon need be at hand: read, not run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.settings import Settings, load_settings

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages, each as (instruction, argument), with lines joined."""
    text = re.sub(r"^#.*\n", "", (TOP / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found: list[list[tuple[str, str]]] = []
    for instruction, argument in (line.split(None, 1) for line in lines if line.strip()):
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, argument))
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    parsed = yaml.safe_load((TOP / "deploy" / "compose.yaml").read_text())
    assert isinstance(parsed["services"], dict)
    return parsed["services"]


def seconds(duration: str) -> int:
    found = re.fullmatch(r"(\d+)s", duration)
    assert found
    return int(found[1])


def test_everything_that_is_installed_is_locked_with_hashes(stages: list[list[tuple[str, str]]]) -> None:
    installs = [
        command.strip()
        for stage in stages
        for instruction, argument in stage
        if instruction == "RUN"
        for command in argument.split("&&")
        if "install " in command and "uninstall" not in command
    ]
    assert len(installs) == 3
    for command in installs:
        locked = re.search(r"--require-hashes --only-binary :all: -r (\S+)", command)
        assert locked or "--no-deps --no-index" in command
        if locked:
            text = (TOP / locked[1]).read_text()
            assert text.count("==") <= text.count("--hash=sha256:")
            assert "://" not in text


def test_the_image_runs_the_worker_without_rights_or_build_tools(stages: list[list[tuple[str, str]]]) -> None:
    *_, last = stages
    final = dict(last)
    uid, gid = final["USER"].split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert json.loads(final["ENTRYPOINT"]) == ["measurement-updates"]
    assert json.loads(final["CMD"]) == ["run"]
    assert final["STOPSIGNAL"] == "SIGTERM"
    assert [argument for instruction, argument in last if instruction == "RUN"] == [
        "python -m pip uninstall --quiet --yes --root-user-action ignore pip"
    ]
    # The same Python in both stages: the virtual environment is bound to it.
    assert len({stage[0][1].removesuffix(" AS build") for stage in stages}) == 1


def test_what_the_image_is_made_of_is_let_through_to_the_build(stages: list[list[tuple[str, str]]]) -> None:
    ignored, *let_through = [
        line
        for line in (TOP / ".dockerignore").read_text().splitlines()
        if not line.startswith("#") and not line.startswith("**")
    ]
    assert ignored == "*"
    copied = {
        source
        for instruction, argument in stages[0]
        if instruction == "COPY"
        for source in argument.split()[:-1]
    }
    assert {name.removeprefix("!") for name in let_through} == copied
    assert all((TOP / name).exists() for name in copied)


def test_the_workers_services_set_what_is_a_setting(services: dict[str, dict[str, Any]]) -> None:
    names = {name.upper() for name in Settings.model_fields}
    for name in ("migrate", "topics", "worker"):
        assert set(services[name]["environment"]) <= names
        assert {"KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"} <= set(services[name]["environment"])
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]


def test_the_worker_waits_for_schema_and_topics_and_has_time_to_finish(
    services: dict[str, dict[str, Any]],
) -> None:
    worker = services["worker"]
    assert worker["command"] == ["run"]
    assert {name: how["condition"] for name, how in worker["depends_on"].items()} == {
        "migrate": "service_completed_successfully",
        "topics": "service_completed_successfully",
    }
    drain = load_settings(_env_file=None).worker_drain_timeout
    assert seconds(worker["stop_grace_period"]) > drain.total_seconds()
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}


def test_kafka_and_postgres_are_seen_on_this_machine_only(services: dict[str, dict[str, Any]]) -> None:
    assert {port for service in services.values() for port in service.get("ports", ())} == {
        "127.0.0.1:29092:29092",
        "127.0.0.1:25432:5432",
    }
    assert "OUTSIDE://localhost:29092" in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
