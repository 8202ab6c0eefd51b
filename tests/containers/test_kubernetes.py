"""The manifests are what Kubernetes accepts, and their settings what the server does."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nablad_server.config import Settings

MANIFESTS = Path(__file__).parents[2] / "docker" / "kubernetes"
FILES = sorted(path for path in MANIFESTS.glob("*.yaml") if path.name != "kustomization.yaml")


def manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())
    return content


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_manifest_is_valid(path: Path) -> None:
    kubernetes_validate.validate(yaml.safe_load(path.read_text()), "1.32", strict=True)


def test_every_manifest_is_listed() -> None:
    assert sorted(manifest("kustomization")["resources"]) == [path.name for path in FILES]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_rendered_whole_is_valid_and_callers_need_not_be_servers() -> None:
    rendered = subprocess.run(["kubectl", "kustomize", MANIFESTS], capture_output=True, text=True, check=True).stdout
    resources = list(yaml.safe_load_all(rendered))
    for resource in resources:
        kubernetes_validate.validate(resource, "1.32", strict=True)
    policy = next(resource for resource in resources if resource["kind"] == "NetworkPolicy")
    assert policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"] == {"nablad-caller": "true"}


def test_the_settings_fit_the_pod() -> None:
    text = (MANIFESTS / "nablad.toml").read_text()
    settings = Settings(**tomllib.loads(text))
    pod = manifest("deployment")["spec"]["template"]["spec"]
    assert settings.drain_pause_seconds + settings.drain_seconds < pod["terminationGracePeriodSeconds"]
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert settings.metrics_address == f"0.0.0.0:{ports['metrics']}"
