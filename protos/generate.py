"""Regenerates the committed stubs under client/nablad/v1 from the .proto files.

    python protos/generate.py            write them
    python protos/generate.py --check    write nothing; exit 1 and print the difference if they are out of date

The compiler is pinned and lives in its own environment, because it must be *older* than every runtime that the client
supports: generated code refuses to import under a protobuf or grpcio older than the ones it was made with.
"""

import argparse
import difflib
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "client"
TOOLS = ("grpcio-tools==1.74.0", "mypy-protobuf==5.1.0", "protobuf==6.33.6", "setuptools<81")
TOOLS_ENVIRONMENT = ROOT / ".cache" / "proto-tools"
PACKAGE_DOC = '"""Generated protobuf messages and gRPC stubs of the package nablad.v1; see protos/generate.py."""\n'


def tools() -> Path:
    """The Python interpreter of the environment that holds the pinned compiler, made on first use."""
    python = TOOLS_ENVIRONMENT / "bin" / "python"
    stamp = TOOLS_ENVIRONMENT / "tools.txt"
    wanted = "\n".join(TOOLS)
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(TOOLS_ENVIRONMENT, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *TOOLS], check=True)
        stamp.write_text(wanted)
    return python


def generate(target: Path) -> dict[Path, str]:
    """Compiles every .proto into `target`; returns the generated texts by path relative to it."""
    python = tools()
    names = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command: list[str | Path] = [
        python, "-m", "grpc_tools.protoc", f"-I{PROTOS}",
        f"--plugin=protoc-gen-mypy={python.parent / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={python.parent / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}", f"--mypy_out=quiet:{target}",
    ]  # fmt: skip
    subprocess.run([*command, *names], check=True)
    services = [name for name in names if "\nservice " in (PROTOS / name).read_text()]
    subprocess.run([*command, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services], check=True)
    (target / "nablad/v1/__init__.py").write_text(PACKAGE_DOC)
    return {path.relative_to(target): path.read_text() for path in sorted(target.rglob("*.py*"))}


def main() -> int:
    """Writes or checks the stubs; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs instead of writing them")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(Path(scratch))
    committed = {path.relative_to(STUBS): path.read_text() for path in sorted((STUBS / "nablad/v1").glob("*.py*"))}
    if check:
        stale = {path for path in fresh.keys() | committed.keys() if fresh.get(path) != committed.get(path)}
        for path in sorted(stale):
            old, new = committed.get(path, ""), fresh.get(path, "")
            sys.stdout.writelines(
                difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"committed/{path}", f"fresh/{path}")
            )
        print(f"{len(stale)} stub files out of date" if stale else f"{len(fresh)} stub files up to date")
        return 1 if stale else 0
    for path in committed.keys() - fresh.keys():
        (STUBS / path).unlink()
    for path, text in fresh.items():
        (STUBS / path).write_text(text)
    print(f"wrote {len(fresh)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
