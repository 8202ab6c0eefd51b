"""Functions from Python files, modules and entry points.

Loading a source runs it: a file of functions is code that the operator of the server trusts.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from nablad_server.functions.function import Function
from nablad_server.functions.registration import FILE_PREFIX, MARK, build

GROUP = "nablad.functions"
"""Installed packages offer functions by entry points of this group; each names a module, or one function."""


def load(target: str) -> list[Function]:
    """The functions of a file (`models.py`) or of an importable module (`package.models`).

    Those marked with `@function` are taken; if none is, every public function that the module itself defines.

    Raises:
        ValueError: it cannot be found or imported, holds no function, or one of them does not fit; the message says
            which and why.
    """
    path = Path(target)
    if path.suffix == ".py" or path.is_file():  # a directory may be a package
        return _functions(imported_file(path), f"file:{path.name}")
    try:
        module = importlib.import_module(target)
    except Exception as error:  # whatever the module's own code raises
        raise ValueError(f"module:{target}: cannot import it: {type(error).__name__}: {error}") from error
    return _functions(module, f"module:{target}")


def load_entry_points() -> list[Function]:
    """The functions that installed packages offer. Raises ValueError as `load` does."""
    functions: list[Function] = []
    for point in importlib.metadata.entry_points(group=GROUP):
        source = f"entry_point:{point.name}"
        try:
            found = point.load()
        except Exception as error:  # whatever the package's own code raises
            raise ValueError(f"{source} ({point.value}): {type(error).__name__}: {error}") from error
        functions += _functions(found, source) if isinstance(found, ModuleType) else [build(found, source)]
    return functions


def imported_file(path: str | Path) -> ModuleType:
    """The module that a Python file makes. Raises ValueError if it cannot be imported."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"file:{path}: there is no such file")
    name = f"{FILE_PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"file:{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up
    sys.path.insert(0, str(path.parent.resolve()))  # so that it can import its neighbours, as a script can
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file's own code raises
        del sys.modules[name]
        raise ValueError(f"file:{path}: cannot import it: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _functions(module: ModuleType, source: str) -> list[Function]:
    public = [value for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    chosen: list[Callable[..., Any]] = [value for value in public if hasattr(value, MARK)]
    if not chosen:
        chosen = [v for v in public if inspect.isfunction(v) and v.__module__ == module.__name__]
    if not chosen:
        raise ValueError(f"{source}: it defines no function; mark those to serve with @function")
    unique = {id(call): call for call in chosen}  # an alias is not a second function
    return [build(call, source) for call in unique.values()]
