"""Functions are replaced while the server serves: no call is lost, and none gets a mixture of the old and the new."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import nablad
from nablad import aio, errors
from nablad.cli import main
from servers import ServerProcess

X = np.array([1.0, 2.0, 4.0])

HEAD = """
import os, pathlib, time
import numpy as np
from jaxtyping import Array, Float
from nablad_server.functions.function import Warm
from nablad_server.functions.registration import function
"""

SCALED = """
@function(version={version}, warm=[Warm("gradient", {{"n": 3}})])
def scaled(x: Float[Array, "n"]) -> Float[Array, ""]:
    return ({scale} * x**2).sum()
"""

OTHER = """
@function
def other(y: Float[Array, "n"], a: Float[Array, ""]) -> Float[Array, ""]:
    return a * y.sum()
"""

BOX = """
@function(differentiable=False)
def box(x: Float[np.ndarray, ""]) -> Float[np.ndarray, "2"]:
    here = pathlib.Path({here!r})
    if x < 0:
        (here / "begun").touch()
        while not (here / "go").exists():
            time.sleep(0.01)
    return np.array([{scale} * x, os.getpid()])
"""


def scaled(scale: float, version: int = 1) -> str:
    return SCALED.format(scale=scale, version=version)


class Served:
    """A server of one file, which can be rewritten."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.write(scaled(2.0))
        self.process = ServerProcess(file, "--no-builtin", "--no-entry-points")

    def write(self, *parts: str) -> None:
        # In one step, as editors and deployments do: a reload never finds half a file.
        draft = self.file.with_suffix(".draft")
        draft.write_text("".join([HEAD, *parts]))
        draft.rename(self.file)

    def hang_up(self) -> dict[str, Any]:
        """Sends SIGHUP, and gives what the log says of the reload."""
        self.process.process.send_signal(signal.SIGHUP)
        self.process.wait_for("reload finished")
        return [line for line in self.process.log if line["event"] == "reload finished"][-1]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path / "models.py")
    with found.process:
        yield found
        assert found.process.errors() == []


@pytest.fixture
def client(served: Served) -> Iterator[nablad.Client]:
    with nablad.Client(served.process.address, timeout=60) as connected:
        yield connected


def gradient_of(found: nablad.Gradient) -> float:
    """The scale by the value, which the gradient has, too: an answer is of one function."""
    scale = float(found.value) / float((X**2).sum())
    np.testing.assert_array_equal(found.gradient, 2 * scale * X)
    return scale


def test_under_load_every_answer_is_of_one_function_and_later_ones_of_the_new(
    served: Served, client: nablad.Client
) -> None:
    scales = [2.0, 3.0, 5.0, 7.0]
    stop = threading.Event()
    begun = threading.Barrier(5)
    seen: list[list[float]] = [[] for _ in range(4)]
    lost: list[Exception] = []

    def ask(own: list[float]) -> None:
        try:
            begun.wait()
            with nablad.Client(served.process.address, timeout=60) as mine, mine.pipeline() as pipeline:
                while not stop.is_set():
                    own.append(gradient_of(mine.gradient("scaled", X)))
                    together = [pipeline.gradient("scaled", X) for _ in range(5)]
                    own.extend(gradient_of(each.result()) for each in together)
        except Exception as error:
            lost.append(error)

    threads = [threading.Thread(target=ask, args=(own,)) for own in seen]
    for thread in threads:
        thread.start()
    begun.wait()
    for scale in scales[1:]:
        served.write(scaled(scale))
        line = served.hang_up()
        assert (line["outcome"], line["replaced"]) == ("changed", ["scaled@1"])
        for _ in range(20):
            assert gradient_of(client.gradient("scaled", X)) == scale
    stop.set()
    for thread in threads:
        thread.join()

    assert lost == []
    for own in seen:
        assert set(own) <= set(scales)
        assert own == sorted(own), "once a caller has had an answer of the new function, none of the old one follows"


def test_what_does_not_load_is_refused_and_the_old_functions_stay(served: Served, client: nablad.Client) -> None:
    file = str(served.file)
    broken = {
        "an import error": "import no_such_module",
        "a syntax error": "def scaled(:",
        "an error when it is traced": scaled(3.0).replace("x**2", "no_such_name"),
        "a warm-up that fails": scaled(3.0).replace('{"n": 3}', '{"m": 3}'),
        "two functions of one name": scaled(3.0)
        + scaled(5.0).replace("def scaled", "def again").replace("version=1", 'version=1, name="scaled"'),
        "no function": "",
    }
    reasons = {}
    for what, text in broken.items():
        served.write(text)
        found = client.reload()
        assert (found.added, found.replaced, found.removed) == ((), (), ())
        (reasons[what],) = found.refused.items()
        assert gradient_of(client.gradient("scaled", X)) == 2.0

    assert reasons["an import error"][0] == file
    assert "no_such_module" in reasons["an import error"][1]
    assert "SyntaxError" in reasons["a syntax error"][1]
    assert "no_such_name" in reasons["an error when it is traced"][1]
    assert reasons["a warm-up that fails"][0] == "scaled@1"
    assert "both define scaled@1" in reasons["two functions of one name"][1]
    logged = [line for line in served.process.log if line["event"] == "reload refused"]
    assert [(line["source"], line["reason"]) for line in logged] == list(reasons.values())

    served.write(scaled(3.0))
    assert client.reload().replaced == ("scaled@1",)
    assert gradient_of(client.gradient("scaled", X)) == 3.0


def test_functions_and_versions_come_and_go(served: Served, client: nablad.Client) -> None:
    found = client.reload()
    assert (found.added, found.replaced, found.removed, found.refused) == ((), (), (), {})
    served.write(scaled(2.0), scaled(3.0, version=2).replace("def scaled", "def newer").replace(
        "version=2", 'version=2, name="scaled"'
    ), OTHER)  # fmt: skip
    found = client.reload()
    assert (found.added, found.replaced, found.removed) == (("other@1", "scaled@2"), ("scaled@1",), ())
    assert [gradient_of(client.gradient(name, X)) for name in ("scaled", "scaled@1", "scaled@2")] == [3.0, 2.0, 3.0]
    assert client.evaluate("other", X, 2.0).value == 14.0

    served.write(OTHER)
    found = client.reload()
    assert (found.replaced, found.removed) == (("other@1",), ("scaled@1", "scaled@2"))
    with pytest.raises(errors.FunctionNotFound):
        client.gradient("scaled", X)
    assert [info.reference for info in client.functions()] == ["other@1"]


def test_a_new_signature_is_found_out_by_clients_that_knew_the_old_one(served: Served, client: nablad.Client) -> None:
    assert client.evaluate("scaled", X).value == 42.0
    served.write(OTHER.replace("def other", "def scaled"))
    assert client.reload().replaced == ("scaled@1",)

    assert client.evaluate("scaled", X, 2.0).value == 14.0, "the old one had one argument"
    with pytest.raises(errors.InvalidArgument):
        client.evaluate("scaled", X)

    async def ask() -> tuple[Any, Any]:
        async with aio.Client(served.process.address) as other:
            before = await other.evaluate("scaled", X, 3.0)
            served.write(scaled(5.0))
            await other.reload()
            return before.value, (await other.evaluate("scaled", X)).value

    assert asyncio.run(ask()) == (21.0, 105.0)


def test_what_a_file_imports_from_beside_it_is_loaded_anew_too(served: Served, client: nablad.Client) -> None:
    beside = served.file.with_name("beside_models.py")
    uses = scaled(1.0).replace("(1.0 *", "(beside_models.SCALE *")
    for scale in (3.0, 5.0, 7.0):  # of one size, within one second: Python would take its bytecode to be up to date
        beside.write_text(f"SCALE = {scale}\n")
        served.write("import beside_models\n", uses)
        client.reload()
        assert gradient_of(client.gradient("scaled", X)) == scale
    beside.write_text("SCALE = 2.0\n")
    assert client.reload().replaced == ("scaled@1",)
    assert gradient_of(client.gradient("scaled", X)) == 2.0


def test_a_call_under_way_ends_with_the_function_that_it_began_with(served: Served, client: nablad.Client) -> None:
    here = served.file.parent
    served.write(BOX.format(here=str(here), scale=2.0))
    client.reload()
    _, old = client.evaluate("box", 1.0).value
    under_way: list[Any] = []
    thread = threading.Thread(target=lambda: under_way.append(client.evaluate("box", -1.0).value))
    thread.start()
    while not (here / "begun").exists():
        continue

    served.write(BOX.format(here=str(here), scale=3.0))
    assert client.reload().replaced == ("box@1",)
    value, new = client.evaluate("box", 1.0).value
    assert (value, new != old) == (3.0, True)
    assert under_way == []
    (here / "go").touch()
    thread.join()

    np.testing.assert_array_equal(under_way, [[-2.0, old]])
    while alive(int(old)):  # its process ends once nobody needs it
        continue
    assert alive(int(new))
    assert client.evaluate("box", 1.0).value.tolist() == [3.0, new]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_point_linearised_before_stays_that_of_the_old_function(served: Served, client: nablad.Client) -> None:
    with client.linearize("scaled", X) as point:
        before = point.vjp(1.0)
        served.write(scaled(3.0))
        client.reload()
        with client.linearize("scaled", X) as later:
            np.testing.assert_array_equal(later.vjp(1.0), 6 * X)
        np.testing.assert_array_equal(point.vjp(1.0), 4 * X)
    np.testing.assert_array_equal(before, 4 * X)


def test_the_command_reloads(served: Served) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["reload", "--address", served.process.address, *arguments])

    assert run().output == "nothing has changed\n"
    served.write(scaled(3.0), OTHER)
    found = json.loads(run("--json").output)
    assert (found["added"], found["replaced"], found["removed"], found["refused"]) == (
        ["other@1"], ["scaled@1"], [], {},
    )  # fmt: skip
    served.write("import no_such_module")
    refused = run()
    assert refused.exit_code == 1
    assert "no_such_module" in refused.output


def test_reloads_come_one_after_the_other_and_the_old_functions_serve_meanwhile(
    served: Served, client: nablad.Client
) -> None:
    here = served.file.parent
    waits = f"""
here = pathlib.Path({str(here)!r})
(here / "begun").touch()
while not (here / "go").exists():
    time.sleep(0.01)
"""
    served.write(waits, scaled(3.0))
    first: list[nablad.Reload] = []
    thread = threading.Thread(target=lambda: first.append(client.reload()))
    thread.start()
    while not (here / "begun").exists():
        continue
    with pytest.raises(errors.DeadlineExceeded):
        client.reload(timeout=0.5)
    assert gradient_of(client.gradient("scaled", X)) == 2.0
    (here / "go").touch()
    thread.join()

    assert [report.replaced for report in first] == [("scaled@1",)]
    assert gradient_of(client.gradient("scaled", X)) == 3.0


def test_modules_are_imported_afresh_with_their_package(tmp_path: Path) -> None:
    package = tmp_path / "kept_models"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "scales.py").write_text("SCALE = 3.0\n")
    text = HEAD + "from kept_models.scales import SCALE\n" + scaled(1.0).replace("(1.0 *", "(SCALE *")
    (package / "functions.py").write_text(text)
    found = ServerProcess("kept_models.functions", "--no-builtin", env={"PYTHONPATH": python_path(tmp_path)})
    with found, nablad.Client(found.address) as client:
        assert gradient_of(client.gradient("scaled", X)) == 3.0
        (package / "scales.py").write_text("SCALE = 5.0\n")
        assert client.reload().replaced == ("scaled@1",)
        assert gradient_of(client.gradient("scaled", X)) == 5.0
        assert found.errors() == []


def python_path(first: Path) -> str:
    return os.pathsep.join([str(first), *filter(None, [os.environ.get("PYTHONPATH")])])
