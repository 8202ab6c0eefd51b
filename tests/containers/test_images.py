"""What the Dockerfiles promise, as far as they can be read without building them; docker/smoke builds and runs them."""

import re
import tomllib
from pathlib import Path

import pytest

from nablad_server.config import Settings

ROOT = Path(__file__).parents[2]
CPU, CUDA = (ROOT / "docker" / name for name in ("Dockerfile", "cuda.Dockerfile"))


@pytest.mark.parametrize("path", [CPU, CUDA], ids=lambda path: path.name)
def test_the_last_user_is_no_administrator_and_a_number(path: Path) -> None:
    users = re.findall(r"^USER (.+)$", path.read_text(), re.MULTILINE)
    assert users[-1] == "10001:10001"


def test_what_the_image_sets_are_settings_and_it_does_not_speak_plaintext_by_itself() -> None:
    named = set(re.findall(r"\bNABLAD_([A-Z_]+)=\S", re.sub(r"^#.*$", "", CPU.read_text(), flags=re.MULTILINE)))
    assert named == {"ADDRESS", "COMPILE_CACHE"}
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_one_image_says_how_it_is_started_and_asked_and_the_other_adds_to_it() -> None:
    assert 'ENTRYPOINT ["nablad", "serve"]' in CPU.read_text()
    assert 'CMD ["nablad", "health"]' in CPU.read_text()
    added = set(re.findall(r"^([A-Z]+) ", CUDA.read_text(), re.MULTILINE))
    assert added == {"ARG", "FROM", "USER", "RUN", "ENV"}


def test_cuda_is_the_one_of_the_servers_jax() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (jax,) = [requirement for requirement in extras["server"] if re.match(r"jax\W", requirement)]
    assert extras["cuda"] == ["nablad[server]", jax.replace("jax", "jax[cuda13]", 1)]
    assert "'nablad[cuda]'" in CUDA.read_text()
