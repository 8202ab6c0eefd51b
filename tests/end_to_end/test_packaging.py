"""`pip install .` alone gives a client that imports and works where JAX is absent."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import importlib.util, sys
for absent in ("jax", "jaxlib", "jaxtyping", "optax", "pydantic", "structlog", "grpc_health"):
    assert importlib.util.find_spec(absent) is None, absent
import nablad
with nablad.Client(sys.argv[1], timeout=60) as client:
    print(client.gradient("rosenbrock", [1.0, 2.0, 3.0]).gradient.tolist())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds the bare package."""
    home = tmp_path_factory.mktemp("thin")
    venv.create(home, with_pip=True)
    interpreter = home / "bin" / "python"
    subprocess.run([interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT], check=True)
    return interpreter


@pytest.mark.timeout(600)
def test_the_bare_package_is_a_client_without_jax(python: Path, server_address: str) -> None:
    done = subprocess.run(
        [python, "-c", SCRIPT, server_address], check=True, capture_output=True, text=True, cwd=python.parent
    )
    assert done.stdout == "[-400.0, 1002.0, -200.0]\n"


@pytest.mark.timeout(600)
def test_commands_of_the_server_say_what_to_install(python: Path) -> None:
    done = subprocess.run([python.parent / "nablad", "serve"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'nablad[server]'" in done.stderr


def test_importing_the_client_here_does_not_import_jax_either() -> None:
    command = "import sys, nablad, nablad.cli; print(sorted({'jax', 'nablad_server'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
