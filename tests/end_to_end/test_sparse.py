"""Sparse matrices over a real socket, through both clients and their pipelines."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from scipy.sparse import csr_array

import nablad
from kept import kept
from nablad import aio
from nablad.errors import DeadlineExceeded, InvalidArgument, InvalidOption, NotScalar, ResultTooLarge, UnknownInput
from nablad.tensors import to_tensor
from nablad.v1 import catalog_pb2, catalog_pb2_grpc, differentiation_pb2_grpc, tensor_pb2
from nablad.v1 import differentiation_pb2 as pb
from servers import ServerProcess

RANDOM = np.random.default_rng(11)
N = 12


@pytest.fixture(scope="module")
def sparse_server() -> Iterator[ServerProcess]:
    """A server with a user's sparse functions."""
    with ServerProcess(Path(__file__).parent / "sparse_functions.py") as process:
        yield process
        assert process.errors() == []


@pytest.fixture(scope="module")
def client(sparse_server: ServerProcess) -> Iterator[nablad.Client]:
    with nablad.Client(sparse_server.address, timeout=120) as connected:
        yield connected


def searches(server: ServerProcess, what: str) -> int:
    """How often the server has looked for a pattern, as its log says."""
    return sum(line.get("event") == "pattern found" and line["query"] == what for line in server.log)


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("chain", ("detected", 34)),
        ("arrowhead", ("detected", 34)),
        ("spectral", ("dense", 144)),
        ("folded", ("declared", 12)),
    ],
)
def test_a_sparse_hessian_is_the_dense_one(
    client: nablad.Client, function: str, expected: tuple[str, int], mode: Any, dtype: Any
) -> None:
    x = RANDOM.normal(size=N).astype(dtype)
    found = client.hessian(function, x, sparse=True, mode=mode)
    dense = client.hessian(function, x, mode=mode)

    sparsity = kept(found).sparsity
    assert ((sparsity.source, sparsity.nonzeros), sparsity.shape) == (expected, (N, N))
    assert kept(found).values.dtype == dtype
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    for mine, its in ((kept(found).to_dense(), dense.hessian), (found.gradient, dense.gradient)):
        np.testing.assert_allclose(mine, its, rtol=tolerance, atol=tolerance * np.abs(its).max())
    np.testing.assert_allclose(found.value, dense.value, rtol=1e-5)


def test_what_cannot_be_found_out_says_why(client: nablad.Client) -> None:
    sparsity = client.sparsity("spectral", np.ones(N))
    assert sparsity.source == "dense"
    assert "fft" in sparsity.reason
    assert client.sparsity("chain", np.ones(N)).reason == ""


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_a_sparse_jacobian_is_the_dense_one_flattened(client: nablad.Client, mode: Any) -> None:
    u = RANDOM.normal(size=(6, 6))
    found = client.jacobian("membrane", u, sparse=True, mode=mode)
    expected = client.jacobian("membrane", u).jacobian.reshape(36, 36)
    np.testing.assert_allclose(kept(found).to_dense(), expected, atol=1e-14)
    assert kept(found).sparsity.nonzeros == 36 * 5 - 4 * 6
    assert kept(found).sparsity.colors < 10
    assert [(axis.name, axis.shape) for axis in kept(found).sparsity.rows] == [("value", (6, 6))]
    matrix = found.jacobian
    direction = RANDOM.normal(size=36)
    pushed = client.jvp("membrane", u, tangent=direction.reshape(6, 6)).jvp.reshape(-1)
    np.testing.assert_allclose(matrix @ direction, pushed, atol=1e-13)


def test_several_arguments_and_outputs_make_one_matrix(client: nablad.Client) -> None:
    x, w = RANDOM.normal(size=3), {"a": RANDOM.normal(size=3), "b": RANDOM.normal(size=3)}

    found = kept(client.hessian("coupled", x, w, wrt=["w", "x"], sparse=True))
    assert [axis.name for axis in found.sparsity.rows] == ["w.a", "w.b", "x"]
    dense = client.hessian("coupled", x, w, wrt=["w", "x"]).hessian
    aa, ax, bx = dense["w"]["a"]["w"]["a"], dense["w"]["a"]["x"], dense["w"]["b"]["x"]
    zero = np.zeros((3, 3))
    np.testing.assert_allclose(found.to_dense(), np.block([[aa, zero, ax], [zero, zero, bx], [ax.T, bx.T, zero]]))

    found = kept(client.jacobian("coupled", x, w, wrt="x", outputs=["force", "energy"], sparse=True))
    assert [axis.name for axis in found.sparsity.rows] == ["force", "energy"]
    np.testing.assert_allclose(found.to_dense()[:3], np.diag(w["b"]))
    np.testing.assert_allclose(found.to_dense()[3], w["a"] ** 2 + [w["b"][0], 0, 0])


def test_the_pattern_misses_nothing_wherever_the_point_is(client: nablad.Client) -> None:
    for _ in range(20):
        x = RANDOM.normal(size=5)
        found = kept(client.hessian("hinge", x, sparse=True))
        np.testing.assert_allclose(found.to_dense(), client.hessian("hinge", x).hessian, atol=1e-13)


def test_many_points_have_one_pattern_and_a_matrix_each(client: nablad.Client) -> None:
    points = RANDOM.normal(size=(5, N))
    found = client.hessian("chain", points, sparse=True, batched=True)
    assert kept(found).values.shape == (5, kept(found).sparsity.nonzeros)
    assert kept(found).shape == (5, N, N)
    assert all(isinstance(matrix, csr_array) for matrix in found.hessian)
    for x, matrix, row in zip(points, found.hessian, kept(found).to_dense(), strict=True):
        expected = client.hessian("chain", x).hessian
        np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-13)
        np.testing.assert_allclose(row, expected, atol=1e-13)


def test_what_is_not_finite_is_said_to_be(client: nablad.Client) -> None:
    x = np.ones(N)
    assert not client.hessian("chain", x, sparse=True).non_finite
    x[3] = np.nan
    assert client.hessian("chain", x, sparse=True).non_finite


def request(function: str, x: Any, **options: Any) -> pb.HessianRequest:
    named = tensor_pb2.NamedTensor(name="x", tensor=to_tensor(x))
    return pb.HessianRequest(function=function, inputs=[named], structure=pb.HESSIAN_STRUCTURE_SPARSE, **options)


def test_a_known_pattern_does_not_travel_again(sparse_server: ServerProcess) -> None:
    with grpc.insecure_channel(sparse_server.address) as channel:
        stub = differentiation_pb2_grpc.DifferentiationServiceStub(channel)
        x = RANDOM.normal(size=300)
        first = stub.Hessian(request("chain", x), timeout=60)
        fingerprint = first.sparse.pattern.fingerprint
        second = stub.Hessian(request("chain", x, known_pattern=fingerprint), timeout=60)
        assert not second.sparse.HasField("pattern")
        assert second.sparse.values == first.sparse.values
        assert first.ByteSize() - second.ByteSize() > 8 * 898
        other = stub.Hessian(request("arrowhead", x, known_pattern=fingerprint), timeout=60)
        assert other.sparse.pattern.fingerprint not in {b"", fingerprint}


def test_the_client_says_which_pattern_it_knows(sparse_server: ServerProcess) -> None:
    sizes: list[int] = []

    class Recorder(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, details: Any, asked: Any) -> Any:
            call = continuation(details, asked)
            if isinstance(asked, pb.HessianRequest):
                sizes.append(call.result().ByteSize())
            return call

    channel = grpc.intercept_channel(grpc.insecure_channel(sparse_server.address), Recorder())
    with nablad.Client(channel=channel, timeout=60) as client:
        points = RANDOM.normal(size=(3, N))
        found = [kept(client.hessian("chain", x, sparse=True)) for x in points]
        assert found[0].sparsity is found[1].sparsity is found[2].sparsity
        assert sizes[0] > sizes[1] + 4 * 2 * 34
        for x, matrix in zip(points, found, strict=True):
            np.testing.assert_allclose(matrix.to_dense(), client.hessian("chain", x).hessian, atol=1e-13)


def test_two_callers_at_once_cost_one_search(sparse_server: ServerProcess) -> None:
    x = RANDOM.normal(size=5000)
    with nablad.Client(sparse_server.address, timeout=120) as client, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: kept(client.hessian("chain", x, sparse=True)), range(4)))
        assert {matrix.sparsity.nonzeros for matrix in found} == {14998}
        # A line of the log comes after the answer, perhaps; but the answers' patterns come after all searches.
        client.sparsity("chain", x)
    assert searches(sparse_server, "hessian of chain@1(float64[5000])") <= 1


def test_a_caller_who_cannot_wait_finds_the_pattern_later(sparse_server: ServerProcess) -> None:
    x = RANDOM.normal(size=20_000)
    with nablad.Client(sparse_server.address, timeout=120) as client:
        client.evaluate("chain", x)
        with pytest.raises(DeadlineExceeded):
            client.hessian("chain", x, sparse=True, timeout=0.02)
        assert kept(client.hessian("chain", x, sparse=True)).sparsity.nonzeros == 59998


def test_large_matrices_that_would_be_dense_are_refused(client: nablad.Client) -> None:
    with pytest.raises(ResultTooLarge, match="Declare the pattern"):
        client.hessian("spectral", np.ones(3000), sparse=True)
    with pytest.raises(ResultTooLarge, match="Declare the pattern"):
        client.sparsity("spectral", np.ones(3000))


def test_pipelines_take_sparse_calls_among_others(client: nablad.Client) -> None:
    points = RANDOM.normal(size=(6, N + 1))
    with client.pipeline() as pipeline:
        sparse = [pipeline.hessian("chain", x, sparse=True) for x in points]
        dense = [pipeline.hessian("chain", x) for x in points]
        wrong = pipeline.hessian("chain", points[0], sparse=True, columns="x")
        for one, other in zip(sparse, dense, strict=True):
            np.testing.assert_allclose(kept(one.result()).to_dense(), other.result().hessian, atol=1e-13)
        with pytest.raises(InvalidOption):
            wrong.result()
    mapped = client.map("hessian", "chain", points, sparse=True)
    for x, found in zip(points, mapped, strict=True):
        np.testing.assert_allclose(kept(found).to_dense(), client.hessian("chain", x).hessian, atol=1e-13)


def test_an_operation_that_waits_for_a_pattern_can_be_cancelled(sparse_server: ServerProcess) -> None:
    x = RANDOM.normal(size=15_000)
    with nablad.Client(sparse_server.address, timeout=120) as client:
        client.evaluate("chain", x)
        with client.pipeline() as pipeline:
            given_up = pipeline.hessian("chain", x, sparse=True)
            assert given_up.cancel()
            assert pipeline.evaluate("chain", x[:3]).result().value > 0
        assert kept(client.hessian("chain", x, sparse=True)).sparsity.nonzeros == 44998


def test_the_asyncio_client_does_the_same(sparse_server: ServerProcess) -> None:
    x = RANDOM.normal(size=N)

    async def ask() -> None:
        async with aio.Client(sparse_server.address, timeout=60) as client:
            expected = (await client.hessian("chain", x)).hessian
            for _ in range(2):
                found = await client.hessian("chain", x, sparse=True)
                np.testing.assert_allclose(kept(found).to_dense(), expected, atol=1e-13)
            sparsity = await client.sparsity("chain", x)
            assert sparsity.nonzeros == kept(found).sparsity.nonzeros
            async with client.pipeline() as pipeline:
                answered = await pipeline.hessian("chain", x, sparse=True)
                np.testing.assert_allclose(kept(answered).to_dense(), expected, atol=1e-13)

    asyncio.run(ask())


def test_a_pattern_by_itself(client: nablad.Client) -> None:
    found = client.sparsity("chain", np.ones(4))
    assert found.shape == (4, 4)
    assert list(zip(found.row_indices.tolist(), found.column_indices.tolist(), strict=True)) == [
        (i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1
    ]
    assert (found.colors, found.source) == (3, "detected")
    assert found.seconds is not None
    assert found.seconds > 0
    membrane = client.function("membrane").sparsity(np.ones((6, 6)), operator="jacobian")
    assert (membrane.shape, membrane.nonzeros) == ((36, 36), 156)
    with pytest.raises(NotScalar):
        client.sparsity("membrane", np.ones((6, 6)))
    with pytest.raises(InvalidOption):
        client.sparsity("chain", np.ones(4), operator="gradient")
    with pytest.raises(UnknownInput):
        client.sparsity("chain", np.ones(4), wrt="y")


def test_a_search_is_waited_for_until_the_deadline(sparse_server: ServerProcess) -> None:
    with grpc.insecure_channel(sparse_server.address) as channel:
        stub = catalog_pb2_grpc.CatalogServiceStub(channel)
        asked = catalog_pb2.GetSparsityRequest(hessian=request("chain", np.ones(25_000)))
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetSparsity(asked, timeout=0.05)
        assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert stub.GetSparsity(asked, timeout=60).pattern.colors == 3


def test_explanations_count_colors(client: nablad.Client) -> None:
    assert "each of 3 colors" in client.explain("hessian", "chain", np.ones(N), sparse=True).reason
    found = client.explain("jacobian", "membrane", np.ones((6, 6)), sparse=True)
    assert found.mode == "forward"
    assert "colors of columns" in found.reason
    assert found.result_bytes == 8 * (36 + 156)


def test_diagonals_and_traces_of_many_elements_take_a_product_for_each_color(client: nablad.Client) -> None:
    x = RANDOM.normal(size=500)
    expected = np.diag(client.hessian("chain", x).hessian)
    found = client.hessian("chain", x, diagonal=True)
    np.testing.assert_allclose(found.hessian, expected, atol=1e-13)
    assert client.laplacian("chain", x).laplacian == pytest.approx(expected.sum())
    assert "each of 3 colors" in client.explain("hessian", "chain", x, diagonal=True).reason
    assert "each of 3 colors" in client.explain("laplacian", "chain", x).reason


def test_a_diagonal_of_what_is_dense_is_computed_all_the_same(client: nablad.Client) -> None:
    x = RANDOM.normal(size=100)
    expected = np.diag(client.hessian("spectral", x).hessian)
    np.testing.assert_allclose(client.hessian("spectral", x, diagonal=True).hessian, expected, rtol=1e-9)
    assert "each of 100 elements" in client.explain("hessian", "spectral", x, diagonal=True).reason


def test_two_forms_at_once_are_refused_before_anything_is_sent(client: nablad.Client) -> None:
    with pytest.raises(InvalidArgument, match="one of them"):
        client.hessian("chain", np.ones(N), sparse=True, diagonal=True)
