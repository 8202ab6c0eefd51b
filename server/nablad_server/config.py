"""Every setting of the server, its default, and why that default."""

import os
import platform
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from nablad_server.functions.function import Warm


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nablad"


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    """The memory of this container, or of the machine if it is in none."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    texts = [limit.read_text().strip() for limit in limits if limit.is_file()]
    return min([machine, *(int(text) for text in texts if text.isdigit())])


class Settings(BaseSettings):
    """Settings, from strongest to weakest: command line, environment (NABLAD_…), settings file, default."""

    model_config = SettingsConfigDict(env_prefix="NABLAD_", extra="forbid", frozen=True)

    address: str = Field(
        default="127.0.0.1:50051",
        description="HOST:PORT to listen on; port 0 picks a free one. Loopback by default, because there is no "
        "authentication yet: open it only where the network keeps strangers out.",
    )
    functions: list[str] = Field(
        default=[], description="Python files or modules whose functions to serve. Loading one runs its code."
    )
    builtin: bool = Field(
        default=True, description="Serve the built-in catalogue: it costs a second at start-up and no memory."
    )
    entry_points: bool = Field(
        default=True,
        description="Serve the functions of installed packages (entry points of the group nablad.functions).",
    )
    warm: list[str] = Field(
        default=[],
        description="Programs to compile before the server says that it is ready, such as "
        "'gradient rosenbrock n=100 dtype=float64 points=1,64'. None by default: only you know your shapes.",
    )
    workers: int = Field(
        default_factory=lambda: max(1, min(_cores(), 8)),
        ge=1,
        description="Threads that execute batches of any kind; one more takes all but the heavy ones. One a core: XLA "
        "uses all cores inside one execution only for large arrays.",
    )
    black_box_seconds: float = Field(
        default=60.0,
        gt=0,
        description="How long one call of a black box, of all the points of a batch, may take; then its process is "
        "ended and started anew for the next one.",
    )
    concurrent_calls: int = Field(
        default=8192,
        ge=1,
        description="Calls that may be open at once, waiting ones and streams included. Each takes a few kilobytes and "
        "no thread; beyond that callers are told to retry.",
    )
    stream_operations: int = Field(
        default=1024,
        ge=1,
        description="Operations that one Pipeline or Linearize stream may have open before the server reads no "
        "further.",
    )
    stream_bytes: int = Field(
        default=32 << 20,
        ge=1,
        description="Bytes of requests, and again of answers not yet taken, that one Pipeline or Linearize stream may "
        "hold before the server reads no further.",
    )
    linearization_idle_seconds: float = Field(
        default=300.0,
        gt=0,
        description="A Linearize stream without a product for so long is ended: what is kept for its point is large, "
        "and its caller may have forgotten it.",
    )
    linearizations_per_caller: int = Field(
        default=64,
        ge=1,
        description="Linearize streams that may be open over one connection. An optimiser needs one at a time.",
    )
    linearization_bytes: int = Field(
        default_factory=lambda: _memory_bytes() // 8,
        ge=0,
        description="Memory for what Linearize keeps between products. A point that does not fit is computed anew for "
        "each of its products. By default an eighth of what the machine or container has; 0 to keep nothing.",
    )
    metrics_address: str = Field(
        default="none",
        description="HOST:PORT where a Prometheus scrape reads the statistics, at /metrics; 'none' for nowhere. Not "
        "everybody's business, so not open by default.",
    )
    max_points: int = Field(
        default=100_000,
        ge=1,
        description="Points in one request. Larger requests gain nothing: they run in batches anyway.",
    )
    max_batch_points: int = Field(
        default=1024,
        ge=1,
        description="Points in one execution. Beyond about a thousand, batches gain little and others wait.",
    )
    max_batch_bytes: int = Field(
        default=64 << 20,
        ge=1,
        description="Bytes of arguments and results in one execution, unless one point alone has more.",
    )
    max_message_bytes: int = Field(
        default=256 << 20,
        ge=1 << 10,
        lt=1 << 31,
        description="The largest request. gRPC's own 4 MiB is too small for arrays, its ceiling is 2 GiB.",
    )
    max_result_bytes: int = Field(
        default=256 << 20,
        ge=1,
        lt=1 << 31,
        description="The largest response. A larger one is refused before any work.",
    )
    memory_bytes: int = Field(
        default_factory=lambda: _memory_bytes() // 2,
        ge=1,
        description="Memory that one execution may need; programs that need more are refused when they are compiled. "
        "Half of what the machine or container has.",
    )
    queue_calls: int = Field(
        default=4096,
        ge=1,
        description="Calls that may wait for execution. Full: callers are told to retry a little later.",
    )
    queue_bytes: int = Field(default=1 << 30, ge=1, description="Bytes of arguments that waiting calls may hold.")
    direct_microseconds: float = Field(
        default=100.0,
        ge=0,
        description="A batch estimated to compute no longer than this for each of its calls, and than 5 ms in all, "
        "runs at once in the thread that the calls arrived in, when nothing of its kind waits: handing it to another "
        "thread and back would cost as much. 0 hands everything to the workers.",
    )
    programs: int = Field(
        default=1000,
        ge=1,
        description="Compiled programs kept, the least recently used going first. About 0.4 MB each.",
    )
    pending_compiles: int = Field(
        default=64,
        ge=1,
        description="Compilations that may wait. At about 0.1 s each, more would wait longer than callers do.",
    )
    compile_cache: Path | None = Field(
        default_factory=_cache_directory,
        description="Directory where compiled programs outlive the process; 'none' for no such cache. Private to "
        "the server's user: who can write there can run code in the server.",
    )
    drain_pause_seconds: float = Field(
        default=0.5,
        ge=0,
        description="After SIGTERM the health check says NOT_SERVING for so long while calls are still served, "
        "so that balancers look elsewhere first. Set it above your balancer's check interval.",
    )
    drain_seconds: float = Field(
        default=25.0,
        ge=0,
        description="Calls in flight may take so long to finish. Below Kubernetes's 30 s until SIGKILL.",
    )
    reflection: bool = Field(default=True, description="Offer gRPC reflection, so that grpcurl and the like work.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines for people, or for a log collector."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe log line."
    )

    @field_validator("compile_cache", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        return None if value == "none" else value

    @field_validator("warm")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_warm(text)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the interface's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the interface's
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over the file that NABLAD_SETTINGS names."""
        path = os.environ.get("NABLAD_SETTINGS")
        if path is not None and not Path(path).is_file():
            raise ValueError(f"settings file {path}: there is no such file")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

    def on(self, address: str) -> Self:
        """The same settings on another address."""
        return self.model_copy(update={"address": address})


def parse_warm(text: str) -> tuple[str, Warm]:
    """The function's reference and the program that `OPERATOR FUNCTION [symbol=size …] [dtype=D] [points=1,64]` names.

    Raises:
        ValueError: the text is not of that form.
    """
    operator, *rest = text.split()
    try:
        reference, *pairs = rest
        options = dict(pair.split("=", 1) for pair in pairs)
        dtype = options.pop("dtype", "float64")
        points = tuple(int(count) for count in options.pop("points", "1").split(","))
        sizes = {symbol: int(size) for symbol, size in options.items()}
    except ValueError as error:
        raise ValueError(
            f"{text!r}: {error}; expected 'OPERATOR FUNCTION [symbol=size …] [dtype=float64] [points=1,64]', such as "
            "'gradient rosenbrock n=100 points=1,64'"
        ) from None
    return reference, Warm(operator, sizes, dtype, points)


MACHINE = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores"
"""What this runs on, for the start-up log line."""
