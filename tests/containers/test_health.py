"""The image's health check, `nablad health`, finds what it needs in the environment alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from credentials import Certificates
from servers import ServerProcess

NAME = "nablad.example.org"


def health(address: str, **environment: str) -> tuple[int, str]:
    given = {f"NABLAD_{name}": value for name, value in environment.items()}
    command = [sys.executable, "-m", "nablad", "health"]
    done = subprocess.run(
        command, env=os.environ | given | {"NABLAD_TARGET": address}, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("mutual", [False, True])
def test_with_tls_it_needs_the_servers_certificate_and_its_name(tmp_path: Path, mutual: bool) -> None:
    files = Certificates(tmp_path, NAME)
    secured: list[str | Path] = ["--tls-certificate", files.certificate, "--tls-key", files.key]
    asked = {"TARGET_TLS_CA": str(files.certificate), "TARGET_SERVER_NAME": NAME}
    if mutual:
        secured += ["--tls-client-ca", files.ca]
        asked |= {"TARGET_TLS_CERTIFICATE": str(files.certificate), "TARGET_TLS_KEY": str(files.key)}
    with ServerProcess(*secured) as process:
        assert health(process.address, **asked) == (0, "SERVING")
        assert health(process.address)[0] == 1


def test_without_tls_it_needs_nothing_and_where_nobody_listens_it_fails() -> None:
    with ServerProcess() as process:
        assert health(process.address) == (0, "SERVING")
    assert health(process.address) == (1, "NOT SERVING")
