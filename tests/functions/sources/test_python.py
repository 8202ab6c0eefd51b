import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nablad_server.functions.sources.python import load, load_entry_points

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes Python files into a directory that is the current one and importable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before, path = set(sys.modules), list(sys.path)

    def write_file(name: str, text: str) -> Path:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("import jax.numpy as jnp\nfrom jaxtyping import Array, Float\n" + textwrap.dedent(text))
        importlib.invalidate_caches()
        return target

    yield write_file
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def references(target: str) -> list[str]:
    return [function.reference for function in load(target)]


UNMARKED = """
    from math import sqrt
    from os.path import join

    class Thing:
        def __call__(self, x): return x

    def first(x: Float[Array, "n"]): return jnp.sum(x)
    def _hidden(x): return x
    def second(x: Float[Array, "n"]): return x
    again = second
    constant = 3
"""

MARKED = """
    from nablad_server import function

    def inner(x: Float[Array, "n"]): return x

    @function(name="renamed", version=2)
    def original(x: Float[Array, "n"]): return inner(x)
"""


def test_without_marks_every_public_function_of_the_file_itself_is_taken(write: Write) -> None:
    assert references(str(write("unmarked_models.py", UNMARKED))) == ["first@1", "second@1"]


def test_with_marks_only_the_marked_are_taken(write: Write) -> None:
    assert references(str(write("marked_models.py", MARKED))) == ["renamed@2"]


def test_a_function_says_where_it_came_from(write: Write) -> None:
    path = write("where_models.py", UNMARKED)

    assert {function.source for function in load(str(path))} == {"file:where_models.py"}
    assert {function.source for function in load("where_models")} == {"module:where_models"}


def test_a_module_in_a_package_is_loaded_by_its_name(write: Write) -> None:
    write("some_package/__init__.py", "")
    write("some_package/models.py", MARKED)

    assert references("some_package.models") == ["renamed@2"]


def test_a_package_is_loaded_by_its_name_from_beside_its_directory(write: Write) -> None:
    write("beside_package/__init__.py", MARKED)

    assert references("beside_package") == ["renamed@2"]


def test_a_file_may_import_its_neighbours_and_hold_dataclasses(write: Write) -> None:
    write("neighbour_of_models.py", "FACTOR = 3.0")
    path = write(
        "elsewhere_models.py",
        """
        import dataclasses
        import jax
        from neighbour_of_models import FACTOR

        @jax.tree_util.register_dataclass
        @dataclasses.dataclass
        class Parameters:
            w: "Float[Array, 'n']"

        def scaled(p: "Parameters"): return FACTOR * p.w
        """,
    )

    (function,) = load(str(path))

    assert [spec.name for spec in function.signature.inputs] == ["p.w"]


@pytest.mark.parametrize("target", ["no_such_models.py", "deep/no_such_models.py"])
def test_a_file_that_is_not_there_is_named(write: Write, target: str) -> None:
    with pytest.raises(ValueError, match=f"file:{target}: there is no such file"):
        load(target)


def test_a_module_that_is_not_there_is_named(write: Write) -> None:
    with pytest.raises(ValueError, match="module:no_such_module: cannot import it: ModuleNotFoundError"):
        load("no_such_module")


RAISING = "raise RuntimeError('out of order')"


def test_a_file_that_raises_is_named_with_its_reason_and_leaves_nothing_behind(write: Write) -> None:
    path = write("raising_models.py", RAISING)

    with pytest.raises(ValueError, match=r"raising_models\.py: cannot import it: RuntimeError: out of order"):
        load(str(path))
    assert not any("raising_models" in name for name in sys.modules)


def test_a_module_that_raises_is_named_with_its_reason(write: Write) -> None:
    write("raising_module.py", RAISING)

    with pytest.raises(ValueError, match="module:raising_module: cannot import it: RuntimeError: out of order"):
        load("raising_module")


def test_a_file_that_is_not_python_is_named(write: Write) -> None:
    with pytest.raises(ValueError, match="cannot import it: SyntaxError"):
        load(str(write("garbled_models.py", "def def")))


def test_a_file_without_functions_is_refused_with_advice(write: Write) -> None:
    with pytest.raises(ValueError, match=r"file:empty_models\.py: it defines no function; mark those to serve"):
        load(str(write("empty_models.py", "x = 1")))


def test_a_function_that_does_not_fit_is_named_with_its_file(write: Write) -> None:
    path = write("unfit_models.py", 'def unfit(x: float): return x\ndef fit(x: Float[Array, "n"]): return x')

    with pytest.raises(ValueError, match=r"file:unfit_models\.py: function 'unfit': parameter 'x': .*float"):
        load(str(path))


def test_installed_packages_offer_modules_and_functions_by_entry_points(write: Write, tmp_path: Path) -> None:
    write("offering_package.py", MARKED)
    entry_points = "[nablad.functions]\nall = offering_package\none = offering_package:inner\n"
    write_distribution(tmp_path, "offering", entry_points)

    found = {(function.reference, function.source) for function in load_entry_points()}

    assert {("renamed@2", "entry_point:all"), ("inner@1", "entry_point:one")} <= found


def test_an_entry_point_that_cannot_be_loaded_is_named(write: Write, tmp_path: Path) -> None:
    write_distribution(tmp_path, "broken", "[nablad.functions]\nbroken = no_such_package:f\n")

    with pytest.raises(ValueError, match=r"entry_point:broken \(no_such_package:f\): ModuleNotFoundError"):
        load_entry_points()


def write_distribution(directory: Path, name: str, entry_points: str) -> None:
    """What an installed package leaves beside its modules."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
