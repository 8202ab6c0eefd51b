"""Functions of PyTorch as one operation of JAX: its rules against closed forms, and against their twins in JAX."""

# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool, Complex, Float, Int

from nablad.errors import FunctionFailed
from nablad.tensors import Array as Numbers
from nablad_server.derivatives.program import calls_back
from nablad_server.functions.function import Function
from nablad_server.functions.registration import build, function
from nablad_server.functions.signature import ArraySpec

pytest.importorskip("torch", reason="PyTorch is an extra, and is not installed")
import torch

X = np.array([0.5, -1.25, 2.0])
Y = np.array([1.5, 0.25, -0.75])
POINTS = X + np.linspace(-1, 1, 5)[:, None]


@function(engine="torch", inputs={"x": Float[Array, "n"], "y": Float[Array, "n"]})
def tensors(x: Any, y: Any) -> Any:
    """Two outputs, of which one is whole, none linear."""
    return {"count": (x > 0).sum(), "vector": torch.sin(x) * y**2 + x[0] * x, "whole": torch.dot(x, y) ** 3}


def twin(x: Float[Array, "n"], y: Float[Array, "n"]) -> Any:
    """The same in JAX."""
    return {"count": jnp.sum(x > 0), "vector": jnp.sin(x) * y**2 + x[0] * x, "whole": jnp.dot(x, y) ** 3}


THEIRS, OURS = build(tensors, "test"), build(twin, "test")


def vector(of: Function, x: Any, y: Any) -> Any:
    return of.flat((x, y))[1]


def scalar(of: Function, x: Any, y: Any) -> Any:
    _, found, whole = of.flat((x, y))
    return jnp.sum(found**2) + whole


def of_many(of: Function, x: Any) -> Any:
    """A scalar made of many points: whose derivative goes through their batch."""
    return jnp.sum(jax.vmap(lambda point: scalar(of, point, jnp.asarray(Y)))(x) ** 2)


TRANSFORMS: dict[str, Callable[[Function], Any]] = {
    "value": lambda f: f.flat((X, Y)),
    "jit": lambda f: jax.jit(lambda x, y: f.flat((x, y)))(X, Y),
    "gradient": lambda f: jax.grad(lambda x, y: scalar(f, x, y), argnums=(0, 1))(X, Y),
    "jacfwd": lambda f: jax.jacfwd(lambda x: vector(f, x, Y))(X),
    "jacrev": lambda f: jax.jacrev(lambda y: vector(f, X, y))(Y),
    "hessian forward over reverse": lambda f: jax.jacfwd(jax.grad(lambda x: scalar(f, x, Y)))(X),
    "hessian reverse over forward": lambda f: jax.jacrev(jax.jacfwd(lambda x: scalar(f, x, Y)))(X),
    "hessian reverse over reverse": lambda f: jax.jacrev(jax.grad(lambda x: scalar(f, x, Y)))(X),
    "hessian forward over forward": lambda f: jax.jacfwd(jax.jacfwd(lambda x: scalar(f, x, Y)))(X),
    "mixed block": lambda f: jax.jacfwd(jax.grad(lambda x, y: scalar(f, x, y)), argnums=1)(X, Y),
    "third derivative": lambda f: jax.jacfwd(jax.jacrev(jax.jacrev(lambda x: scalar(f, x, Y))))(X),
    "points": lambda f: jax.vmap(lambda x, y: f.flat((x, y)), in_axes=(0, None))(POINTS, Y),
    "points of another axis": lambda f: jax.vmap(lambda x: vector(f, x, Y), in_axes=1)(POINTS.T),
    "points of points": lambda f: jax.vmap(
        lambda y: jax.vmap(lambda x: vector(f, x, y))(POINTS)
    )(np.stack([Y, 2 * Y])),
    "gradients of points": lambda f: jax.vmap(jax.grad(lambda x: scalar(f, x, Y)))(POINTS),
    "hessians of points": lambda f: jax.vmap(jax.hessian(lambda x: scalar(f, x, Y)))(POINTS),
    "gradient of a batch": lambda f: jax.grad(lambda x: of_many(f, x))(POINTS),
    "hessian of a batch": lambda f: jax.hessian(lambda x: of_many(f, x))(POINTS[:2]),
    "forward over forward of a batch": lambda f: jax.jacfwd(jax.jacfwd(lambda x: of_many(f, x)))(POINTS[:2]),
    "a stack of cotangents": lambda f: jax.vmap(jax.vjp(lambda x: vector(f, x, Y), X)[1])(np.eye(3)),
    "a batch of products, differentiated": lambda f: jax.jacrev(
        lambda x: jax.vmap(jax.linearize(lambda p: vector(f, p, Y), x)[1])(jnp.eye(3))
    )(X),
    "linearized": lambda f: jax.linearize(jax.grad(lambda x: scalar(f, x, Y)), X)[1](Y),
    "transposed twice": lambda f: jax.linear_transpose(
        lambda c: jax.vjp(lambda x: vector(f, x, Y), X)[1](c)[0], X
    )(Y),
    "in a loop": lambda f: jax.lax.scan(lambda x, _: (jax.grad(lambda p: scalar(f, p, Y))(x) / 100, x), X,
                                        length=3),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("compiled", [False, True])
def test_every_transformation_agrees_with_that_of_jax(name: str, compiled: bool) -> None:
    transform = TRANSFORMS[name]

    found = jax.jit(lambda: transform(THEIRS))() if compiled else transform(THEIRS)
    expected = transform(OURS)

    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-11)


def test_equal_traces_are_equal_and_known_to_call_back() -> None:
    def traces() -> list[Any]:
        return [jax.make_jaxpr(jax.vmap(jax.hessian(lambda x: scalar(THEIRS, x, Y))))(POINTS).jaxpr for _ in range(2)]

    one, other = traces()

    calls = [[e.params["call"] for e in jaxpr.eqns if "call" in e.params] for jaxpr in (one, other)]
    assert calls[0] == calls[1]
    assert len(calls[0]) > 1
    assert calls_back(one)


def test_outputs_are_known_without_running_it() -> None:
    ran: list[Any] = []

    @function(engine="torch", inputs={"x": Float[Array, "n m"]})
    def noted(x: Any) -> Any:
        ran.append(type(x))
        return x.T @ x, x.to(torch.float32)[0]

    built = build(noted, "test")

    assert torch.Tensor not in ran
    given = (ArraySpec((1 << 20, 1 << 16), np.dtype(np.float64)),)  # 512 GiB
    assert [str(spec) for _, spec in built.outputs_at(given)] == ["float64[65536, 65536]", "float32[65536]"]
    assert [spec.shape for spec in built.signature.outputs or ()] == [("m", "m"), ("m",)]


class Case(NamedTuple):
    """One input, and the same elements as PyTorch should hold them."""

    dtype: Any
    held: str


@pytest.mark.parametrize("case", [
    Case(np.float64, "float64"), Case(np.float32, "float32"), Case(np.float16, "float16"),
    Case(jnp.bfloat16, "bfloat16"), Case(np.int64, "int64"), Case(np.int8, "int8"), Case(np.uint8, "uint8"),
    Case(np.bool_, "bool"), Case(np.complex128, "complex128"), Case(np.complex64, "complex64"),
])  # fmt: skip
def test_dtypes_pass_unchanged(case: Case) -> None:
    seen: list[str] = []

    @function(engine="torch", inputs={"x": Any})
    def turned(x: Any) -> Any:
        seen.append(str(x.dtype))
        return x.flip(0)

    given = np.array([3, 0, 1]).astype(case.dtype)
    (found,) = build(turned, "test").flat((given,))

    assert found.dtype == given.dtype
    np.testing.assert_array_equal(np.asarray(found), given[::-1])
    assert seen[-1] == f"torch.{case.held}"


def test_indices_are_long_in_32_bit_programs_too() -> None:
    @function(engine="torch")
    def picked(x: Float[Array, "n c"], labels: Int[Array, "n"], mask: Bool[Array, "n"]) -> Float[Array, ""]:
        return (torch.gather(x, 1, labels[:, None])[:, 0] * mask).sum()

    built = build(picked, "test")
    x, labels, mask = np.arange(6.0).reshape(3, 2), np.array([1, 0, 1]), np.array([True, False, True])

    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            found = jax.jit(jax.grad(lambda p: built.flat((p, labels, mask))[0]))(jnp.asarray(x, dtype))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, [[0, 1], [0, 0], [0, 1]])


def test_complex_numbers_in_between() -> None:
    @function(engine="torch")
    def spectrum(x: Float[Array, "n"]) -> Any:
        transform = torch.fft.fft(x)
        return {"power": (transform * transform.conj()).real.sum(), "transform": transform.conj()}

    built = build(spectrum, "test")

    power, transform = built.flat((X,))
    np.testing.assert_allclose(np.asarray(transform), np.conj(np.fft.fft(X)), rtol=1e-12)
    assert power == pytest.approx(3 * X @ X)  # Parseval
    np.testing.assert_allclose(jax.grad(lambda x: built.flat((x,))[0])(X), 6 * X, rtol=1e-12)


def test_arrays_without_elements() -> None:
    @function(engine="torch", sizes={"n": 2})
    def squares(x: Float[Array, "n"]) -> Any:
        return x * x, (x * x).sum()

    built = build(squares, "test")
    nothing = np.zeros(0)

    assert jax.jacfwd(lambda x: built.flat((x,))[0])(nothing).shape == (0, 0)
    assert jax.grad(lambda x: built.flat((x,))[1])(nothing).shape == (0,)
    assert float(built.flat((nothing,))[1]) == 0


def test_it_is_pytorchs_if_an_annotation_says_so() -> None:
    def annotated(x: Float[torch.Tensor, "n"], scale: Complex[torch.Tensor, ""]) -> Float[torch.Tensor, ""]:
        return (x * scale.real).sum()

    def returned(x: Any) -> tuple[Float[torch.Tensor, ""], Float[torch.Tensor, ""]]:
        return x, x

    @function(inputs={"x": [Float[torch.Tensor, "n"], {"w": Int[torch.Tensor, ""]}]})
    def nested(x: Any) -> Any:
        return x[0] * x[1]["w"]

    assert [build(call, "test").engine for call in (annotated, returned, nested)] == ["torch"] * 3


@pytest.mark.parametrize(("result", "words"), [
    (lambda _: "text", "raised TypeError"),
    (lambda _: None, "returns no tensor"),
    (lambda x: x[:, 5], "raised IndexError"),
    (lambda x: x.to(torch.float8_e4m3fn), "float8_e4m3fn, which cannot be sent"),
])  # fmt: skip
def test_what_cannot_be_served_is_refused_at_registration(result: Callable[[Any], Any], words: str) -> None:
    def wrong(x: Float[torch.Tensor, "n"]) -> Any:
        return result(x)

    with pytest.raises(ValueError, match=f"test: wrong@1.*{words}"):
        build(wrong, "test")


def test_declared_outputs_are_checked() -> None:
    def wrong(x: Float[torch.Tensor, "n"]) -> Float[torch.Tensor, "n"]:
        return x.sum()

    with pytest.raises(ValueError, match=r"output 'value' is declared as \[n\] but has the shape \[\]"):
        build(wrong, "test")


def test_many_threads_in_forward_mode() -> None:
    push = jax.jit(lambda x, t: jax.jvp(lambda p: vector(THEIRS, p, Y), (x,), (t,))[1])
    wanted = np.asarray(jax.jvp(lambda p: vector(OURS, p, Y), (X,), (Y,))[1])
    failures: list[Any] = []

    def ask() -> None:
        for _ in range(100):
            try:
                np.testing.assert_allclose(push(X, Y), wanted, rtol=1e-12)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_its_error_is_kept_for_who_asked() -> None:
    @function(engine="torch")
    def positive(x: Float[Array, ""]) -> Float[Array, ""]:
        if x < 0:
            raise LookupError(f"nothing is known of {float(x)}")
        return torch.sqrt(x)

    built = build(positive, "test")

    for points in (np.array(-2.0), np.array([1.0, -2.0])):
        ask = jax.vmap(lambda x: built.flat((x,))) if points.ndim else lambda x: built.flat((x,))
        with pytest.raises(FunctionFailed, match=r"positive@1 raised LookupError: nothing is known of -2\.0") as failed:
            ask(points)
        assert failed.value.metadata == {"function": "positive@1", "exception": "LookupError"}
    found: Numbers = np.asarray(jax.vmap(jax.grad(lambda x: built.flat((x,))[0]))(np.array([0.25, 1.0])))
    np.testing.assert_allclose(found, [1.0, 0.5])
