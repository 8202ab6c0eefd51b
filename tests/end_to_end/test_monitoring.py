"""What the dashboard and the alert rules ask for is what a server exports, and the rules are well-formed."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import nablad
from servers import ServerProcess

MONITORING = Path(__file__).parents[2] / "monitoring"
FILES = ("alerts.yaml", "grafana.json")
NAME = re.compile(r"\b(?:nablad|process|python)_[a-z_]+")
WORDS = {"nablad_top"}
"""What looks like a metric and is none."""


@pytest.fixture(scope="module")
def scrape() -> Iterator[str]:
    with ServerProcess("--metrics-address", "127.0.0.1:0") as process:
        with nablad.Client(process.address) as client:
            client.gradient("rosenbrock", np.ones(2))
            client.reload()
        yield scraped(process)
        assert process.errors() == []


def scraped(process: ServerProcess) -> str:
    (line,) = [line for line in process.log if line["event"] == "metrics"]
    with urllib.request.urlopen(f"http://{line['address']}/metrics") as answer:
        text: str = answer.read().decode()
        return text


def exported(scrape: str) -> set[str]:
    """The names of all samples that there can be."""
    names: set[str] = set()
    for family in text_string_to_metric_families(scrape):
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
    return names


@pytest.mark.parametrize("file", FILES)
def test_every_metric_that_is_asked_for_is_exported(scrape: str, file: str) -> None:
    asked = set(NAME.findall((MONITORING / file).read_text())) - WORDS
    # Labels and descriptions name families, without the endings of their samples.
    families = {family.name for family in text_string_to_metric_families(scrape)}

    assert len(asked) > 10
    assert asked <= exported(scrape) | families


def test_every_panel_asks_for_something_and_has_a_place_of_its_own() -> None:
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {panel["id"] for panel in panels} == set(range(1, len(panels) + 1))
    for panel in panels:
        assert panel["type"] == "row" or all(target["expr"] for target in panel["targets"])


def test_no_metric_is_exported_twice_and_none_has_callers_as_a_label(scrape: str) -> None:
    families = list(text_string_to_metric_families(scrape))
    names = [family.name for family in families]
    assert sorted(names) == sorted(set(names))
    labels = {
        label for family in families if family.name.startswith("nablad") for s in family.samples for label in s.labels
    }
    assert labels <= {
        "function",
        "operator",
        "reason",
        "method",
        "code",
        "le",
        "outcome",
        "version",
        "jax",
        "grpcio",
        "python",
    }


def test_calls_are_counted_by_method_and_code_and_those_refused_at_the_entrance_too() -> None:
    with ServerProcess("--metrics-address", "127.0.0.1:0", "--rate-per-caller", "5") as process:
        with nablad.Client(process.address, retries=False) as client:
            for _ in range(3):
                client.describe("rosenbrock")
            with pytest.raises(nablad.errors.FunctionNotFound):
                client.describe("no_such_function")
            answered = 0
            try:
                while True:
                    client.gradient("rosenbrock", np.ones(2))
                    answered += 1
            except nablad.errors.RateLimited:
                pass
            assert client.healthy()
        families = {family.name: family for family in text_string_to_metric_families(scraped(process))}

    counted = {(s.labels["method"], s.labels["code"]): s.value for s in families["nablad_rpcs"].samples}
    describe, gradient = "nablad.v1.CatalogService/DescribeFunction", "nablad.v1.DifferentiationService/Gradient"
    expected = {
        (describe, "OK"): 3,
        (describe, "NOT_FOUND"): 1,
        (gradient, "OK"): answered,
        (gradient, "RESOURCE_EXHAUSTED"): 1,
        ("grpc.health.v1.Health/Check", "OK"): 1,
    }
    assert counted == {key: count for key, count in expected.items() if count}
    counts = {s.labels["method"]: s.value for s in families["nablad_rpc_seconds"].samples if s.name.endswith("_count")}
    assert counts[describe] == 4


def test_promtool_accepts_the_rules_and_the_scrape(scrape: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it comes with Prometheus")
    rules = subprocess.run([promtool, "check", "rules", MONITORING / "alerts.yaml"], capture_output=True, text=True)
    assert rules.returncode == 0, rules.stderr
    ours = "\n".join(line for line in scrape.splitlines() if "nablad_" in line) + "\n"
    metrics = subprocess.run([promtool, "check", "metrics"], input=ours, capture_output=True, text=True)
    assert metrics.returncode == 0, metrics.stderr


def test_each_rule_has_a_case_that_fires_it() -> None:
    names = set(re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yaml").read_text()))
    fired = set(re.findall(r'alertname="(\w+)"', (MONITORING / "alerts_test.yaml").read_text()))
    assert len(names) >= 10
    assert fired == names


def test_each_rule_fires_when_it_should_and_not_on_a_server_that_does_its_work() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it comes with Prometheus")
    done = subprocess.run([promtool, "test", "rules", MONITORING / "alerts_test.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
