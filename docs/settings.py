"""Writes the tables of all settings into docs/running.md, from the settings themselves.

python docs/settings.py            write them
python docs/settings.py --check    write nothing; exit 1 and print the difference if they are out of date
"""

import argparse
import difflib
import sys
import typing
from pathlib import Path

from pydantic.fields import FieldInfo

from nablad_server.config import Settings

PAGE = Path(__file__).resolve().parent / "running.md"
BEGIN, END = "<!-- settings: written by docs/settings.py -->\n", "<!-- end of settings -->\n"

GROUPS = {
    "Where it listens, and for whom": (
        "address", "tls_certificate", "tls_key", "tls_client_ca", "plaintext", "tokens", "reflection",
    ),
    "What it serves": ("functions", "builtin", "entry_points", "warm"),
    "How it computes": (
        "workers", "direct_microseconds", "max_batch_points", "max_batch_bytes", "max_points", "black_box_seconds",
    ),
    "What may wait, and what may be kept": (
        "memory_bytes", "queue_calls", "queue_bytes", "max_message_bytes", "max_result_bytes", "programs",
        "pending_compiles", "compile_cache", "linearization_bytes", "linearization_idle_seconds",
    ),
    "What one caller may take": (
        "calls_per_caller", "streams_per_caller", "rate_per_caller", "queue_share", "unread_bytes_per_caller",
        "compiles_per_caller", "compile_seconds_per_caller", "linearizations_per_caller",
    ),
    "Connections, calls and streams": (
        "connections", "calls_per_connection", "concurrent_calls", "header_bytes", "handshake_seconds",
        "request_seconds", "connection_idle_seconds", "connection_age_seconds", "stream_operations", "stream_bytes",
    ),
    "How it ends": ("drain_pause_seconds", "drain_seconds"),
    "What it tells": ("metrics_address", "tracing", "log_calls", "log_format", "log_level"),
}  # fmt: skip
"""Every setting, by what somebody looks for. What is in none of these, or in two, is refused."""

UNITS = {"bytes": "bytes", "seconds": "s", "microseconds": "µs", "rate": "a second"}
"""By the words of which settings' names are made."""

SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def tables() -> str:
    """One table for each group. Raises ValueError if the groups are not all settings, each once."""
    grouped = [name for names in GROUPS.values() for name in names]
    wrong = set(grouped) ^ set(Settings.model_fields) | {name for name in grouped if grouped.count(name) > 1}
    if wrong:
        raise ValueError(
            f"{', '.join(sorted(wrong))}: in no group, in two, or no setting; see to GROUPS in docs/settings.py"
        )
    return "\n".join(_table(title, names) for title, names in GROUPS.items())


def _table(title: str, names: tuple[str, ...]) -> str:
    rows = [_row(name, Settings.model_fields[name]) for name in names]
    return "\n".join((f"### {title}\n", "| Setting | Default | What it does |", "|---|---|---|", *rows, ""))


def _row(name: str, field: FieldInfo) -> str:
    spelt = f"`{name}`<br>{_option(name, field)}<br>`NABLAD_{name.upper()}`"
    described = (field.description or "").replace("|", "\\|")
    return f"| {spelt} | {_default(name, field)} | {described} |"


def _option(name: str, field: FieldInfo) -> str:
    if name == "functions":
        return "`FILE` or `MODULE`"
    flag = name.replace("_", "-")
    if field.annotation is bool:
        return f"`--{flag}`, `--no-{flag}`"
    if typing.get_origin(field.annotation) is list:
        return f"`--{flag}`, repeated"
    return f"`--{flag}`"


def _default(name: str, field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "`~/.cache/nablad`" if name == "compile_cache" else "from the machine"
    default = field.default
    if isinstance(default, bool):
        return "on" if default else "off"
    if default is None or default == []:
        return "none"
    if isinstance(default, str):
        return f"`{default}`"
    unit = next((unit for word, unit in UNITS.items() if word in name.split("_")), "")
    size = next((f" ({default // each} {word})" for each, word in SIZES if unit == "bytes" and default >= each), "")
    return f"{default:g} {unit}".rstrip() if isinstance(default, float) else f"{default} {unit}".rstrip() + size


def page(text: str) -> str:
    """The page with its tables as they should be. Raises ValueError if it has no place for them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} has no lines {BEGIN.strip()} and {END.strip()}, between which the tables belong")
    return f"{before}{begin}\n{tables()}\n{end}{after}"


def main() -> int:
    """Writes or checks the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    check = parser.parse_args().check
    found = PAGE.read_text()
    wanted = page(found)
    if check:
        sys.stdout.writelines(difflib.unified_diff(found.splitlines(True), wanted.splitlines(True), "is", "should be"))
        return 0 if found == wanted else 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
