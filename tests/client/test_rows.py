"""Matrices in blocks of rows, through both clients: against closed forms, and over wires that are cut."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nablad
from nablad import MatrixAxis, RowBlock, aio, errors
from nablad._calls import Prepared
from nablad._rows import Reading
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import DTYPE_FLOAT32, DTYPE_FLOAT64
from nablad.v1.tensor_pb2 import MatrixAxis as MatrixAxisMessage
from servers import ServerProcess
from wires import Wire

Matrix = NDArray[np.float64]
N = 1200
"""Rows of Rosenbrock's function: 9.6 kB each, so 218 in a block, and 6 blocks."""
X = np.random.default_rng(0).normal(size=N)


# Rosenbrock's function Σ 100 (xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)²
def hessian(x: Matrix) -> Matrix:
    diagonal = np.append(1200 * x[:-1] ** 2 - 400 * x[1:] + 2, 0.0)
    diagonal[1:] += 200
    found: Matrix = np.diag(diagonal) + np.diag(-400 * x[:-1], 1) + np.diag(-400 * x[:-1], -1)
    return found


EXPECTED = hessian(X)


def check(found: Matrix, expected: Matrix = EXPECTED) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-9)


class Sync:
    """What the tests ask of a client: a matrix read, or its blocks."""

    def __init__(self, address: str, **options: Any) -> None:
        self._address, self._options = address, {"timeout": 120, **options}

    def read(self, method: str, *args: Any, out: Any = None, progress: Any = None, **options: Any) -> tuple[Any, Any]:
        with nablad.Client(self._address, **self._options) as client:
            with getattr(client, method)(*args, **options) as stream:
                found = stream.read(out, progress)
            return stream, found

    def blocks(self, method: str, *args: Any, meanwhile: Any = None, **options: Any) -> list[RowBlock]:
        found = []
        client = nablad.Client(self._address, **self._options)
        with client, getattr(client, method)(*args, **options) as stream:
            for block in stream:
                found.append(block)
                if meanwhile is not None:
                    meanwhile(block)
        return found


class Async(Sync):
    """The same of the asyncio client."""

    def read(self, method: str, *args: Any, out: Any = None, progress: Any = None, **options: Any) -> tuple[Any, Any]:
        async def go() -> tuple[Any, Any]:
            async with aio.Client(self._address, **self._options) as client:
                async with getattr(client, method)(*args, **options) as stream:
                    found = await stream.read(out, progress)
                return stream, found

        return asyncio.run(go())

    def blocks(self, method: str, *args: Any, meanwhile: Any = None, **options: Any) -> list[RowBlock]:
        async def go() -> list[RowBlock]:
            found = []
            client = aio.Client(self._address, **self._options)
            async with client, getattr(client, method)(*args, **options) as stream:
                async for block in stream:
                    found.append(block)
                    if meanwhile is not None:
                        meanwhile(block)
            return found

        return asyncio.run(go())


TWINS = pytest.mark.parametrize("twin", [Sync, Async])


@TWINS
def test_read_gives_the_matrix_and_what_belongs_to_it(server_address: str, twin: type[Sync]) -> None:
    steps: list[tuple[int, int]] = []

    stream, found = twin(server_address).read("stream_hessian", "rosenbrock", X, progress=lambda *at: steps.append(at))

    check(found)
    assert (stream.shape, stream.dtype, stream.total_bytes) == ((N, N), np.float64, N * N * 8)
    assert stream.rows == stream.columns == (MatrixAxis("x", (N,)),)
    assert stream.value == pytest.approx(np.sum(100 * (X[1:] - X[:-1] ** 2) ** 2 + (1 - X[:-1]) ** 2))
    assert stream.gradient[0] == pytest.approx(-400 * X[0] * (X[1] - X[0] ** 2) - 2 * (1 - X[0]))
    assert (stream.gradient.shape, stream.non_finite) == ((N,), False)
    assert stream.execution.function == "rosenbrock@1"
    assert len(steps) > 2
    assert steps == sorted(set(steps))
    assert steps[-1] == (N, N)


@TWINS
def test_the_blocks_are_all_rows_in_order_each_array_its_own(server_address: str, twin: type[Sync]) -> None:
    blocks = twin(server_address).blocks("stream_hessian", "rosenbrock", X)

    assert [block.first_row for block in blocks] == list(
        np.cumsum([0, *(len(block.array) for block in blocks[:-1])])
    )  # fmt: skip
    check(np.concatenate([block.array for block in blocks]))
    assert all(block.array.flags.writeable and block.array.flags.aligned for block in blocks)
    assert not any(block.non_finite for block in blocks)


A, V = np.arange(6.0).reshape(2, 3), np.array([1.0, -2.0, 0.5])
BY_A = np.kron(np.eye(2), V)
"""∂(Av)ᵢ/∂Aₖₗ = δᵢₖ vₗ"""


@TWINS
def test_a_jacobian_of_several_arguments(server_address: str, twin: type[Sync]) -> None:
    stream, found = twin(server_address).read("stream_jacobian", "matvec", A, V)

    np.testing.assert_array_equal(stream.value, A @ V)
    assert stream.gradient is None
    assert stream.columns == (MatrixAxis("A", (2, 3)), MatrixAxis("x", (3,)))
    assert stream.rows == (MatrixAxis("value", (2,)),)
    np.testing.assert_allclose(found, np.hstack([BY_A, A]), rtol=1e-14)

    _, one = twin(server_address).read("stream_jacobian", "matvec", A, V, wrt="A")
    assert one.shape == (2, 2, 3), "one output, one input: a tensor"
    np.testing.assert_allclose(one.reshape(2, 6), BY_A, rtol=1e-14)


@TWINS
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_modes_and_single_precision(server_address: str, twin: type[Sync], mode: str) -> None:
    x = np.linspace(-1, 1, 30).astype(np.float32)
    stream, found = twin(server_address).read("stream_hessian", "rosenbrock", x, mode=mode)
    assert found.dtype == stream.dtype == np.float32
    np.testing.assert_allclose(found, hessian(x.astype(np.float64)), rtol=1e-5, atol=1e-3)


@TWINS
def test_scalars_and_arrays_without_elements(server_address: str, twin: type[Sync]) -> None:
    _, found = twin(server_address).read("stream_hessian", "sin", 0.5)
    assert found.shape == ()
    assert found == pytest.approx(-np.sin(0.5), rel=1e-14)

    stream, nothing = twin(server_address).read("stream_hessian", "sum_of_squares", np.zeros(0))
    assert (stream.shape, nothing.shape, stream.total_bytes) == ((0, 0), (0, 0), 0)
    assert twin(server_address).blocks("stream_hessian", "sum_of_squares", np.zeros(0)) == []


def destinations(directory: Path) -> dict[str, Any]:
    """Arrays that the matrix fits into, filled with something else."""
    return {
        "an array": np.full((N, N), np.nan),
        "a file": np.memmap(directory / "hessian", np.float64, "w+", shape=(N, N)),
        "by columns": np.full((N, N), np.nan, order="F"),
        "single precision": np.full((N, N), np.nan, np.float32),
        "a part": np.full((N + 1, 2 * N), np.nan)[1:, ::2],
    }


@TWINS
def test_rows_go_into_the_callers_array(server_address: str, twin: type[Sync], tmp_path: Path) -> None:
    for name, out in destinations(tmp_path).items():
        _, found = twin(server_address).read("stream_hessian", "rosenbrock", X, out=out)
        assert found is out, name
        np.testing.assert_allclose(out, EXPECTED, rtol=1e-6, atol=1e-4, err_msg=name)
    out = np.memmap(tmp_path / "hessian", np.float64, "r", shape=(N, N))
    check(out)


@TWINS
def test_an_array_that_does_not_fit_is_refused(server_address: str, twin: type[Sync]) -> None:
    read_only = np.empty((2, 6))
    read_only.flags.writeable = False
    for out, wrong in (
        (np.empty((2, 7)), r"shape \(2, 7\); the matrix needs \(2, 2, 3\) or \(2, 6\)"),
        (np.empty((2, 6), np.int64), "int64"),
        (read_only, "read-only"),
        (np.empty((2, 3, 2)).transpose(0, 2, 1), "not contiguous"),
    ):
        with pytest.raises(errors.InvalidArgument, match=wrong):
            twin(server_address).read("stream_jacobian", "matvec", A, V, wrt="A", out=out)
    for shape in ((2, 2, 3), (2, 6)):
        whole = np.empty(shape)
        assert twin(server_address).read("stream_jacobian", "matvec", A, V, wrt="A", out=whole)[1] is whole
        np.testing.assert_allclose(whole.reshape(2, 6), BY_A, rtol=1e-14)


@TWINS
def test_what_is_wrong_is_raised_on_entering(server_address: str, twin: type[Sync]) -> None:
    asked = twin(server_address)
    with pytest.raises(errors.NotScalar):
        asked.read("stream_hessian", "softmax", X)
    with pytest.raises(errors.UnknownOutput):
        asked.read("stream_jacobian", "softmax", X, outputs="nope")
    with pytest.raises(errors.FunctionNotFound):
        asked.read("stream_jacobian", "nope", X)
    with pytest.raises(errors.MissingInput):
        asked.read("stream_jacobian", "matvec", X)
    with pytest.raises(errors.DeadlineExceeded):
        asked.read("stream_hessian", "rosenbrock", X, timeout=0.0)


def test_a_stream_is_used_in_its_block_and_in_one_way(client: nablad.Client) -> None:
    stream = client.stream_hessian("rosenbrock", X)
    with pytest.raises(RuntimeError, match="with"):
        next(stream)
    with stream:
        first = next(iter(stream))
        with pytest.raises(RuntimeError, match="either"):
            stream.read()
        assert next(stream).first_row == len(first.array)
    with pytest.raises(RuntimeError, match="with"):
        next(stream)
    with stream:  # again, from the beginning
        check(stream.read())


def test_a_client_that_is_closed_ends_the_stream(server_address: str) -> None:
    client = nablad.Client(server_address)
    with client.stream_hessian("rosenbrock", np.ones(4000)) as stream:
        next(stream)
        client.close()
        with pytest.raises(errors.Cancelled):
            list(stream)


@TWINS
def test_something_not_finite_is_flagged(server_address: str, twin: type[Sync]) -> None:
    x = X.copy()
    x[-2] = 5e152  # 1200 x² overflows, −400 x does not
    asked = twin(server_address)
    assert [block.non_finite for block in asked.blocks("stream_hessian", "rosenbrock", x)][:-1] == [False] * 5
    stream, found = asked.read("stream_hessian", "rosenbrock", x)
    assert stream.non_finite
    assert np.argwhere(~np.isfinite(found)).tolist() == [[N - 2, N - 2]]


@pytest.fixture
def wire(server_address: str) -> Iterator[Wire]:
    with Wire(server_address) as laid:
        yield laid


@TWINS
def test_a_connection_that_breaks_in_the_middle_is_not_noticed(wire: Wire, twin: type[Sync]) -> None:
    steps: list[int] = []
    wire.cut_after(5 << 20)
    _, found = twin(wire.address).read("stream_hessian", "rosenbrock", X, progress=lambda at, _: steps.append(at))

    check(found)
    assert wire.connections == 2
    assert steps == sorted(set(steps)), "no row comes twice"


@TWINS
def test_every_break_is_forgiven_as_long_as_rows_come_in_between(wire: Wire, twin: type[Sync]) -> None:
    blocks = twin(wire.address).blocks("stream_hessian", "rosenbrock", X, meanwhile=lambda _: wire.cut())
    check(np.concatenate([block.array for block in blocks]))
    assert wire.connections > 1


@TWINS
def test_breaks_without_a_row_in_between_are_counted(wire: Wire, twin: type[Sync]) -> None:
    with pytest.raises(errors.Unavailable):
        # The first block tells the wire to let less than a block through from now on.
        twin(wire.address).blocks(
            "stream_hessian", "rosenbrock", np.ones(4000), meanwhile=lambda _: wire.cut_after(1 << 20, times=99)
        )
    # Connections may be made anew without being used, so they are more, but not many more.
    assert 3 <= wire.connections <= 12


@TWINS
def test_without_retries_a_break_is_an_error(wire: Wire, twin: type[Sync]) -> None:
    wire.cut_after(5 << 20)
    with pytest.raises(errors.Unavailable):
        twin(wire.address, retries=False).read("stream_hessian", "rosenbrock", X)


@TWINS
def test_a_server_that_is_killed_is_left_for_another(twin: type[Sync]) -> None:
    x = np.random.default_rng(1).normal(size=3000)
    with ServerProcess() as one, ServerProcess() as other, Wire(one.address) as wire:

        def kill(block: RowBlock) -> None:
            if block.first_row == 0:
                wire.lead_to(other.address)
                one.process.kill()

        blocks = twin(wire.address).blocks("stream_hessian", "rosenbrock", x, meanwhile=kill)
        check(np.concatenate([block.array for block in blocks]), hessian(x))
        assert other.errors() == []


@TWINS
def test_a_server_that_drains_is_left_for_another(twin: type[Sync]) -> None:
    x = np.random.default_rng(1).normal(size=3000)
    with ServerProcess() as one, ServerProcess() as other, Wire(one.address) as wire:

        def drain(block: RowBlock) -> None:
            if block.first_row == 0:
                wire.lead_to(other.address)
                one.terminate()

        blocks = twin(wire.address).blocks("stream_hessian", "rosenbrock", x, meanwhile=drain)
        check(np.concatenate([block.array for block in blocks]), hessian(x))
        assert one.stop() == 0
        assert one.errors() == other.errors() == []


def header(**changes: Any) -> bytes:
    """The first message about a matrix of 4 × 2 numbers."""
    axis = MatrixAxisMessage(name="x", shape=[4])
    facts: dict[str, Any] = {
        "row_count": 4, "column_count": 2, "total_bytes": 64, "dtype": DTYPE_FLOAT64, "block_rows": 2, "rows": [axis],
    }  # fmt: skip
    return pb.StreamHessianResponse(header=pb.MatrixHeader(**facts | changes)).SerializeToString()


def block(first_row: int, rows: int) -> bytes:
    tensor = to_tensor(np.ones((rows, 2)))
    return pb.StreamHessianResponse(block=pb.RowBlock(first_row=first_row, tensor=tensor)).SerializeToString()


@pytest.mark.parametrize(
    "wrong",
    [
        b"", b"\xff", block(0, 2)[:-1], block(1, 2), block(3, 2), block(2, 3), block(2, 0), header(),
        header(first_row=2, row_count=5), header(first_row=2, dtype=DTYPE_FLOAT32), header(first_row=2, rows=[]),
        block(2, 1) + block(3, 1), pb.StreamHessianResponse(block=pb.RowBlock(first_row=2)).SerializeToString(),
    ],
)  # fmt: skip
def test_messages_that_do_not_go_on_where_the_last_one_ended_are_a_defect(wrong: bytes) -> None:
    request = pb.StreamHessianRequest(function="f")
    reading = Reading(Prepared(request, lambda header: header), retries=True, deadline=float("inf"))
    with pytest.raises(errors.Internal):  # a block before the header
        reading.take(block(0, 2))
    assert reading.take(header()) is None
    rows = reading.take(block(0, 2))
    assert rows is not None
    assert (rows.first, rows.count, reading.next_row, reading.done) == (0, 2, 2, False)

    with pytest.raises(errors.Internal, match="no part of a matrix"):
        reading.take(wrong)

    assert reading.take(header(first_row=2, block_rows=1)) is None, "another server may cut it otherwise"
    assert [reading.take(block(row, 1)) is None for row in (2, 3)] == [False, False]
    assert reading.done


def test_the_rest_is_asked_of_the_version_that_gave_the_beginning() -> None:
    request = pb.StreamHessianRequest(function="f")
    reading = Reading(Prepared(request, lambda header: header), retries=True, deadline=10.0)
    assert pb.StreamHessianRequest.FromString(reading.request()) == pb.StreamHessianRequest(function="f")
    reading.take(header(execution=pb.Execution(function="f@3")))
    reading.take(block(0, 2))
    asked = pb.StreamHessianRequest(function="f@3", first_row=2)
    assert pb.StreamHessianRequest.FromString(reading.request()) == asked
    assert [reading.remaining(now) for now in (4.0, 11.0)] == [6.0, 0.0]


def test_the_handle_of_a_function_streams_too(client: nablad.Client) -> None:
    with client.function("rosenbrock").stream_hessian(X, columns="x") as stream:
        check(stream.read())
    with client.function("softmax").stream_jacobian([0.0, 0.0]) as stream:
        np.testing.assert_allclose(stream.read(), [[0.25, -0.25], [-0.25, 0.25]], rtol=1e-14)


def test_the_streams_are_twins() -> None:
    context = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__", "__next__": "__anext__"}
    mine, theirs = (
        {
            name: value for name, value in vars(kind).items()
            if inspect.isfunction(value) and (name.startswith("__") or not name.startswith("_"))
        }
        for kind in (nablad.RowStream, aio.RowStream)
    )  # fmt: skip
    assert {context.get(name, name) for name in mine} == set(theirs)
    for name, method in mine.items():
        twin = theirs[context.get(name, name)]
        assert list(inspect.signature(method).parameters) == list(inspect.signature(twin).parameters), name
        assert method.__doc__ == twin.__doc__, name
