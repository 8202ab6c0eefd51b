import os
import subprocess
import sys
from pathlib import Path

import pytest

from nablad_server.derivatives import device

COMPILE = """
import sys
from pathlib import Path
from nablad_server.derivatives.device import configure
configure(Path(sys.argv[1]))
import jax, jax.numpy as jnp
print(jax.jit(lambda x: jnp.sin(x) + 1)(jnp.float64(0.0)).dtype)
"""


def compile_in_a_process(cache: Path) -> str:
    """The settings are the whole process's: a test of them has one of its own."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(cache)], capture_output=True, text=True, check=True, timeout=100
    )
    return done.stdout.splitlines()[-1]  # above it the device is logged


def stored(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*-cache")}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that a process has filled."""
    path = tmp_path_factory.mktemp("device") / "cache"
    assert compile_in_a_process(path) == "float64"
    return path


def test_compiled_programs_outlive_the_process_in_a_private_directory(cache: Path) -> None:
    first = stored(cache)
    assert any("lambda" in name for name in first), "short compilations are kept too"
    (directory,) = cache.iterdir()
    assert directory.stat().st_mode & 0o077 == 0

    compile_in_a_process(cache)

    assert stored(cache) == first, "the second process finds what the first one left"


def test_what_a_full_disk_left_empty_is_compiled_and_kept_anew(cache: Path) -> None:
    compile_in_a_process(cache)
    (directory,) = cache.iterdir()
    entries = list(directory.glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(b"")

    compile_in_a_process(cache)

    assert min(entry.stat().st_size for entry in entries) > 0


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_cache_that_others_can_write_is_refused(cache: Path, mode: int) -> None:
    (directory,) = cache.iterdir()
    directory.chmod(mode)
    try:
        with pytest.raises(PermissionError, match="can be written by others"):
            device.configure(cache)
    finally:
        directory.chmod(0o700)


def test_a_cache_of_another_user_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = cache.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    with pytest.raises(PermissionError, match="another user"):
        device.configure(cache)


@pytest.mark.parametrize("platforms", ["cuda", "cuda,cpu"])
def test_a_gpu_that_is_asked_for_and_not_there_ends_the_start_with_what_to_do(platforms: str) -> None:
    # No GPU is visible to the process, also where there is one.
    environment = os.environ | {"JAX_PLATFORMS": platforms, "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "nablad_server", "--address", "127.0.0.1:0", "--compile-cache", "none"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert f"JAX_PLATFORMS is '{platforms}', and there is no such device" in done.stderr
    assert "--gpus all" in done.stderr
    assert "Traceback" not in done.stderr
