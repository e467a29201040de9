"""deploy/alerts.yaml: every alert has its page in the runbook, and every metric that it names exists."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.metrics import Gauges, LaneGauges, Metrics

TOP = Path(__file__).parents[2]
RUNBOOK = "docs/runbook-alerts.md"


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    parsed = yaml.safe_load((TOP / "deploy" / "alerts.yaml").read_text())
    return [rule for group in parsed["groups"] for rule in group["rules"]]


def samples() -> dict[str, set[str]]:
    """Name → its labels, of everything that a worker may tell."""
    metrics = Metrics()
    metrics.decided(1, 1, ["invalid_json"])
    metrics.retries.labels("connection")
    lane = LaneGauges(0, "running", 1.0, 1, 1, 0, 0.0, 0.0)
    metrics.look_at(lambda: Gauges(True, True, [lane], {"invalid_json": 1}, {"running": {"read": 1}}))
    return {
        sample.name: set(sample.labels) | {"job", "instance"}
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def test_every_metric_that_an_alert_names_is_one_that_a_worker_tells(rules: list[dict[str, Any]]) -> None:
    known = samples()
    for rule in rules:
        expression = rule["expr"]
        names = set(re.findall(r"\b(?:measurement_updates|process|python)_\w+", expression))
        assert names, rule["alert"]
        assert names <= known.keys(), rule["alert"]
        labels = {
            label.strip()
            for listed in re.findall(r"(?:by|on) \(([^)]*)\)", expression)
            for label in listed.split(",")
        } | set(re.findall(r"(\w+)=\"", expression))
        assert labels <= set().union(*(known[name] for name in names)), rule["alert"]
        assert expression.count("(") == expression.count(")")


def test_every_alert_has_its_page_in_the_runbook_and_every_page_its_alert(
    rules: list[dict[str, Any]],
) -> None:
    headings = re.findall(r"^### (\w+)$", (TOP / RUNBOOK).read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules]
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"{RUNBOOK}#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}


def test_no_label_can_hold_an_id() -> None:
    assert set().union(*samples().values()) <= {
        "job", "instance", "partition", "state", "point", "stage", "code", "outcome", "cause", "counted", "table",
        "version", "generation", "le",
    }  # fmt: skip
