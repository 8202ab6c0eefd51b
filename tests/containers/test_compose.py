"""The compose files: what they mount is there, what they say fits together, and nothing is open beyond this machine."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from containers.sizing import DRAIN_ENDS_SECONDS, memory_bytes
from nablad_server.config import Settings

ROOT = Path(__file__).parents[2]
DOCKER, MONITORING = ROOT / "docker", ROOT / "monitoring"
UNITS = {"m": 1 << 20, "g": 1 << 30}


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


PLAIN = read(DOCKER / "compose.yaml")["services"]
ADDED = read(DOCKER / "compose.monitoring.yaml")["services"]
# The second file adds to a service of the first, or is a service of its own.
SERVICES: dict[str, dict[str, Any]] = {name: PLAIN.get(name, {}) | ADDED.get(name, {}) for name in PLAIN | ADDED}
SERVER = PLAIN["nablad"]
ENVIRONMENT: dict[str, str] = SERVER["environment"] | ADDED["nablad"]["environment"]


def size(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1]]


def mounts(service: str) -> dict[str, str]:
    """From the path in the container to that in the repository, of the files that a service mounts."""
    found = [volume.split(":") for volume in SERVICES[service].get("volumes", []) if volume.startswith(".")]
    assert all(mode == "ro" for _, _, mode in found)
    return {inside: outside for outside, inside, _ in found}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of the server in the container: from its environment, and each name that begins with NABLAD_ is a setting."""
    for name, value in ENVIRONMENT.items():
        assert name.removeprefix("NABLAD_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    return Settings(address="0.0.0.0:50051")


@pytest.mark.parametrize("service", SERVICES)
def test_every_file_that_is_mounted_is_there(service: str) -> None:
    for outside in mounts(service).values():
        assert (DOCKER / outside).is_file()


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_can_be_gained_and_only_this_machine_can_connect(service: str) -> None:
    given = SERVICES[service]
    assert given["read_only"] is True
    assert given["cap_drop"] == ["ALL"]
    assert given["security_opt"] == ["no-new-privileges:true"]
    assert given["pids_limit"] > 0
    assert size(given["mem_limit"]) > 0
    assert given["ports"]
    assert all(port.startswith("127.0.0.1:") for port in given["ports"])


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_images_of_others_have_a_version(service: str) -> None:
    assert re.fullmatch(r"docker\.io/[a-z/]+:v?\d+\.\d+\.\d+", SERVICES[service]["image"])


def test_metrics_are_not_published() -> None:
    assert [port.rpartition(":")[2] for port in SERVER["ports"]] == ["50051"]


def test_what_the_server_may_hold_fits_into_its_memory(settings: Settings) -> None:
    (scratch,) = SERVER["tmpfs"]
    found = re.search(r"size=(\w+)", scratch)
    assert found
    needed = memory_bytes(settings, size(found[1]), workers=SERVER["cpus"])
    assert needed < size(SERVER["mem_limit"])
    assert SERVER["memswap_limit"] == SERVER["mem_limit"]


def test_the_server_is_not_killed_while_it_drains(settings: Settings) -> None:
    grace = float(SERVER["stop_grace_period"].removesuffix("s"))
    assert settings.drain_pause_seconds + settings.drain_seconds + DRAIN_ENDS_SECONDS < grace


def test_prometheus_reads_what_is_mounted_and_scrapes_where_the_server_serves_metrics(settings: Settings) -> None:
    inside = mounts("prometheus")
    (argument,) = [text for text in SERVICES["prometheus"]["command"] if text.startswith("--config.file=")]
    path = Path(argument.removeprefix("--config.file="))
    config = read(DOCKER / inside[str(path)])
    for rules in config["rule_files"]:
        assert DOCKER / inside[str(path.parent / rules)] == DOCKER / ".." / "monitoring" / "alerts.yaml"

    (scrape,) = config["scrape_configs"]
    host, _, port = settings.metrics_address.rpartition(":")
    assert host == "0.0.0.0"  # noqa: S104 - what the container is told
    assert scrape["static_configs"] == [{"targets": [f"nablad:{port}"]}]


def test_grafana_finds_the_data_source_and_the_dashboard() -> None:
    inside = mounts("grafana")
    provisioning = "/etc/grafana/provisioning"
    (source,) = read(DOCKER / inside[f"{provisioning}/datasources/nablad.yaml"])["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read(DOCKER / inside[f"{provisioning}/dashboards/nablad.yaml"])["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in inside
    assert str(Path(home).parent) == provider["options"]["path"]

    dashboard = json.loads((DOCKER / inside[home]).read_text())
    (variable,) = [found for found in dashboard["templating"]["list"] if found["type"] == "datasource"]
    assert variable["query"] == source["type"]
    assert variable["current"]["value"] == source["uid"]
    used = [panel["datasource"] for panel in dashboard["panels"] if panel["type"] != "row"]
    used += [target["datasource"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert {json.dumps(reference) for reference in used} == {
        json.dumps({"type": source["type"], "uid": f"${{{variable['name']}}}"})
    }


def test_promtool_accepts_the_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it comes with Prometheus")
    done = subprocess.run([promtool, "check", "config", MONITORING / "prometheus.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
