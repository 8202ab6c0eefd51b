"""Every setting of the server, its default, and why that default."""

import os
import platform
import resource
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from nablad_server.derivatives.cores import cores
from nablad_server.functions.function import Warm
from nablad_server.serving.certificates import TlsFiles


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nablad"


def _memory_bytes() -> int:
    """The memory of this container, or of the machine if it is in none."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    texts = [limit.read_text().strip() for limit in limits if limit.is_file()]
    return min([machine, *(int(text) for text in texts if text.isdigit())])


def _connections() -> int:
    """As many connections as leave a quarter of this process's files to everything else."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 16_384 if files == resource.RLIM_INFINITY else max(64, min(16_384, files * 3 // 4))


class Settings(BaseSettings):
    """Settings, from strongest to weakest: command line, environment (NABLAD_…), settings file, default."""

    model_config = SettingsConfigDict(env_prefix="NABLAD_", extra="forbid", frozen=True)

    address: str = Field(
        default="127.0.0.1:50051",
        description="HOST:PORT to listen on, port 0 picking a free one; or unix:PATH, a socket for this user alone. "
        "Loopback by default: what others are to reach is said, with tls_certificate or --plaintext.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM file of the server's certificate and those that vouch for it; TLS is on if it is given. Read "
        "anew when it or its key changes: renewing it needs no restart.",
    )
    tls_key: Path | None = Field(
        default=None, description="PEM file of the certificate's private key, not encrypted: nobody is there to ask."
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM file of the certificates that vouch for clients. If it is given, every connection must show a "
        "client certificate (mutual TLS), and without 'tokens' whoever has one may evaluate and read the catalogue.",
    )
    plaintext: bool = Field(
        default=False,
        description="Listen without TLS where other machines can connect. Off, because tokens and data could be read "
        "on the way: for networks that encrypt by themselves, such as a service mesh.",
    )
    tokens: Path | None = Field(
        default=None,
        description="TOML file of who may call, with what token or certificate, and what they may do; see `nablad "
        "token`. Read anew when it changes, within a second. Without it nobody has to say who they are.",
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
        default_factory=lambda: min(cores(), 8),
        ge=1,
        description="Threads that execute batches of any kind; one more takes all but the heavy ones. By default one "
        "for each core that the process or container may use, at most 8: XLA uses several inside one execution only "
        "for large arrays.",
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
    calls_per_caller: int = Field(
        default=4096,
        ge=0,
        description="Of the concurrent_calls, those that one caller may have open; 0 for no such limit. A caller is an "
        "identity or, without authentication, an address. Half of them by default, so that nobody takes all.",
    )
    streams_per_caller: int = Field(
        default=256,
        ge=0,
        description="Streams (Pipeline, StreamHessian, StreamJacobian, Linearize) that one caller may have open; 0 for "
        "no such limit. One carries any number of operations, and may hold megabytes.",
    )
    rate_per_caller: float = Field(
        default=0.0,
        ge=0,
        description="Requests a second that one caller may make, operations of streams included; after a pause as many "
        "as in one second may come at once. 0, the default, for no such limit: turns are fair without it.",
    )
    queue_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Once the queue is full, callers that hold more than this part of it make room for others: their "
        "newest calls are refused. A caller alone may use all of it.",
    )
    unread_bytes_per_caller: int = Field(
        default=1 << 30,
        ge=0,
        description="Bytes of large responses that one caller may leave untaken before further calls of it are "
        "refused; 0 for no such limit. Who asks and does not read fills the server's memory.",
    )
    connections: int = Field(
        default_factory=_connections,
        ge=1,
        description="Connections that may be open. By default three quarters of the files that the process may open, "
        "at most 16384: each takes a file and about 30 kilobytes.",
    )
    calls_per_connection: int = Field(
        default=1024,
        ge=1,
        description="Calls that may be open on one connection. A client keeps further ones to itself until some have "
        "ended, which costs the server nothing.",
    )
    header_bytes: int = Field(
        default=16 << 10,
        ge=1 << 10,
        description="Headers of one call. What calls need is a few hundred bytes, with a long token a few thousand.",
    )
    handshake_seconds: float = Field(
        default=20.0,
        gt=0,
        description="A connection that has not finished its handshake after so long is closed.",
    )
    request_seconds: float = Field(
        default=120.0,
        gt=0,
        description="A unary call whose request has not arrived whole after so long is ended: the largest one takes so "
        "long at 2 MB/s.",
    )
    connection_idle_seconds: float = Field(
        default=1800.0,
        ge=0,
        description="A connection without a call for so long is closed; clients open another one when they need it. "
        "0 to keep all.",
    )
    connection_age_seconds: float = Field(
        default=0.0,
        ge=0,
        description="A connection as old as this takes no further calls, and what is under way has as long as a drain "
        "to finish; clients go on over another one, which lets balancers spread them over new servers. It ends streams "
        "that last longer, so that it is off (0) unless your balancer works by connections.",
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
        description="Linearize streams that one caller may have open. An optimiser needs one at a time.",
    )
    linearization_bytes: int = Field(
        default_factory=lambda: _memory_bytes() // 8,
        ge=0,
        description="Memory for what Linearize keeps between products. A point that does not fit is computed anew for "
        "each of its products. By default an eighth of what the machine or container has; 0 to keep nothing.",
    )
    tracing: bool = Field(
        default=False,
        description="Send OpenTelemetry traces of calls over OTLP, as the standard OTEL_… variables say (such as "
        "OTEL_EXPORTER_OTLP_ENDPOINT). Needs the extra 'otel'. A span costs more than a light call, so not by default.",
    )
    log_calls: bool = Field(
        default=False,
        description="Log a line for every call that is over. A line costs more than a light call, so not by default.",
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
        description="Compiled programs kept, the least recently used going first. About 1 MB each.",
    )
    pending_compiles: int = Field(
        default=64,
        ge=1,
        description="Compilations that may wait. At about 0.1 s each, more would wait longer than callers do.",
    )
    compiles_per_caller: int = Field(
        default=32,
        ge=0,
        description="Of the pending_compiles, those that one caller asked for; 0 for no such limit. Callers take "
        "turns, and the last quarter of the room is for those who have nothing waiting.",
    )
    compile_seconds_per_caller: float = Field(
        default=0.0,
        ge=0,
        description="Seconds a minute that compiling for one caller may take, over time; beyond, its calls of new "
        "shapes are refused for a while. 0, the default, for no such limit: turns are fair by time without it, and it "
        "is for servers whose cores are needed for warm calls.",
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
        description="Calls in flight may take so long to finish; in the 7 s after that the server ends its own "
        "threads. Give it the sum of both, and the pause, until SIGKILL.",
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

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key need each other; give both, or none for no TLS")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca is about TLS, which is off; give tls_certificate and tls_key, too")
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """The files for TLS; None without it."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_certificate, self.tls_key, self.tls_client_ca)

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
