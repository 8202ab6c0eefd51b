"""The manifests are what Kubernetes accepts, and what they promise the server keeps."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from containers.sizing import DRAIN_ENDS_SECONDS, memory_bytes
from nablad_server.config import Settings

DOCKER = Path(__file__).parents[2] / "docker"
MANIFESTS, SECURED = DOCKER / "kubernetes", DOCKER / "kubernetes-secured"
FILES = sorted(path for path in MANIFESTS.glob("*.yaml") if path.name != "kustomization.yaml")
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}
NEEDS_KUBECTL = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())
    return content


def rendered(directory: Path) -> dict[str, Any]:
    """What Kustomize makes of a directory, by kind."""
    text = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True, check=True).stdout
    resources = list(yaml.safe_load_all(text))
    for resource in resources:
        kubernetes_validate.validate(resource, "1.32", strict=True)
    kinds = {resource["kind"]: resource for resource in resources}
    assert len(kinds) == len(resources)
    return kinds


def size(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


POD = manifest("deployment")["spec"]["template"]
SPEC = POD["spec"]
(CONTAINER,) = SPEC["containers"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


@pytest.fixture
def settings() -> Settings:
    return Settings(**tomllib.loads((MANIFESTS / "nablad.toml").read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_manifest_is_valid(path: Path) -> None:
    kubernetes_validate.validate(yaml.safe_load(path.read_text()), "1.32", strict=True)


def test_every_manifest_is_listed() -> None:
    assert sorted(manifest("kustomization")["resources"]) == [path.name for path in FILES]


@NEEDS_KUBECTL
def test_the_rendered_whole_is_valid_and_callers_need_not_be_servers() -> None:
    policy = rendered(MANIFESTS)["NetworkPolicy"]
    assert policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"] == {"nablad-caller": "true"}


def test_the_server_is_not_killed_while_it_drains_and_a_signal_always_reaches_it(settings: Settings) -> None:
    longest = settings.drain_pause_seconds + settings.drain_seconds + DRAIN_ENDS_SECONDS
    assert longest < SPEC["terminationGracePeriodSeconds"]
    assert SPEC["shareProcessNamespace"] is True


def test_metrics_are_served_where_they_are_looked_for_and_let_through(settings: Settings) -> None:
    assert settings.metrics_address == f"0.0.0.0:{PORTS['metrics']}"
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(PORTS["metrics"])
    let_through = [port["port"] for rule in manifest("networkpolicy")["spec"]["ingress"] for port in rule["ports"]]
    assert sorted(let_through) == sorted(PORTS)


def test_what_the_server_may_hold_fits_into_the_pod(settings: Settings) -> None:
    resources = CONTAINER["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    (scratch,) = [volume["emptyDir"] for volume in SPEC["volumes"] if "emptyDir" in volume]
    assert scratch["medium"] == "Memory"
    needed = memory_bytes(settings, size(scratch["sizeLimit"]), workers=int(resources["limits"]["cpu"]))
    assert needed < size(resources["limits"]["memory"])


def test_nothing_can_be_written_but_memory_and_nothing_gained() -> None:
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert SPEC["securityContext"]["runAsNonRoot"] is True
    assert SPEC["automountServiceAccountToken"] is False
    writable = [mount["name"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["scratch"]


def test_probes_ask_the_port_that_calls_come_to() -> None:
    service = manifest("service")["spec"]
    assert service["ports"][0]["port"] == PORTS["grpc"]
    assert service["clusterIP"] == "None"
    assert {CONTAINER[probe]["grpc"]["port"] for probe in ("startupProbe", "readinessProbe")} == {PORTS["grpc"]}
    assert CONTAINER["livenessProbe"]["tcpSocket"] == {"port": "grpc"}


@NEEDS_KUBECTL
def test_secured_it_has_tls_and_identities_from_secrets_and_probes_that_know_tls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = rendered(SECURED)
    spec = kinds["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    for name, value in environment.items():
        if name != "NABLAD_SETTINGS":  # a file of the pod
            monkeypatch.setenv(name, value)
    settings = Settings(**tomllib.loads((MANIFESTS / "nablad.toml").read_text()) | {"plaintext": False})

    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
    assert settings.tls is not None
    files = (settings.tls.certificate, settings.tls.key, settings.tokens)
    assert [secrets[mounted[str(file.parent)]] for file in files if file] == [
        "nablad-tls", "nablad-tls", "nablad-identities",
    ]  # fmt: skip
    assert environment["NABLAD_PLAINTEXT"] == "false"
    assert environment["NABLAD_TARGET_TLS_CA"] == str(settings.tls.certificate)
    service = kinds["Service"]
    name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
    assert environment["NABLAD_TARGET_SERVER_NAME"] == name
    assert service["spec"]["ports"][0] | {"appProtocol": "https"} == service["spec"]["ports"][0]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["exec"] == {"command": ["nablad", "health"]}
        assert "grpc" not in container[probe]
