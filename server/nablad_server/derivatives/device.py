"""Process-wide settings of JAX and XLA, made once before anything is computed."""

import ctypes
import hashlib
import os
import platform
from pathlib import Path

import jax
import structlog
from jaxlib import version as jaxlib_version

from nablad_server.derivatives.cores import cores

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""

LARGEST_KEPT_BYTES = 32 << 20
"""The C library's own limit for buffers that it keeps."""

KEPT_BYTES = 512 << 20
"""So much free memory may stay with the process."""

log = structlog.get_logger("nablad")


def configure(compile_cache: Path | None) -> None:
    """Settings that must precede the first computation; then finds the device that computes, and logs what it is.

    Args:
        compile_cache: a private directory where compiled programs outlive the process; None for no such cache.

    Raises:
        PermissionError: others own the directory or can write to it: they could run code in this process.
        ValueError: JAX_PLATFORMS names a device that there is not.
    """
    _keep_memory()
    # XLA counts all cores of the machine, also in a container that may use few.
    if not {"PJRT_NPROC", "NPROC"} & os.environ.keys():
        os.environ["PJRT_NPROC"] = str(cores())
    # On the CPU asynchronous dispatch hands every small computation to another thread and back.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if compile_cache is not None:
        _keep_programs(compile_cache)
    found = _device()
    log.info("device", platform=found.platform, kind=found.device_kind)


def _device() -> jax.Device:
    """Where programs run. Raises ValueError if JAX_PLATFORMS asks for a device that there is not."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    reason = "JAX finds none"
    try:
        found = jax.devices()[0]
    except (AssertionError, RuntimeError) as error:  # the former, without a text, if there is none of those named
        reason = str(error) or reason
    else:
        # Without a GPU, JAX passes over "cuda" silently if another platform is named after it.
        if found.platform != "cpu" or asked.partition(",")[0] in ("", "cpu"):
            return found
    raise ValueError(
        f"JAX_PLATFORMS is {asked!r}, and there is no such device: {reason}. See that this process can reach a GPU "
        "(nvidia-smi; docker run --gpus all; the limit nvidia.com/gpu of a pod), or set JAX_PLATFORMS=cpu"
    )


def _keep_programs(compile_cache: Path) -> None:
    """Has compiled programs kept in this directory. Raises PermissionError as `configure` does."""
    directory = compile_cache / _machine()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_mode & 0o022 or found.st_uid != os.geteuid():
        raise PermissionError(
            f"{directory} belongs to another user or can be written by others, who could run code here; run chown and "
            "chmod go-w on it, or choose another directory with --compile-cache"
        )
    # A disk that was full leaves empty ones, which JAX neither can read nor replaces.
    for entry in directory.glob("*-cache"):
        if not entry.stat().st_size:
            entry.unlink(missing_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # What colors sparsity patterns is compiled too; it would keep that beside its own code, where it may not write.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(directory / "numba"))
    # By default only programs that took long are kept; here short ones are the most.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _keep_memory() -> None:
    """Has the C library keep the memory of large buffers for the next ones, instead of returning it to the system.

    A message or a result of megabytes is built in a fresh buffer; fetched from the system each time, its pages are
    cleared and mapped one by one as they are first touched, which costs more than filling them. glibc only.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _machine() -> str:
    """A name for what compiled programs depend on: the compiler's version and the processor's features."""
    features = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"jaxlib-{jaxlib_version.__version__}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
