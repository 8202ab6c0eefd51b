"""Matrix calculus."""

import numpy as np

from .scenario import Blocks, Scenario, Values, arrays, blocks, of_scalar_value, point

_WIDE = ("float64", "float32")  # LAPACK factorises no narrower floats, and JAX does not either

_SQUARE = (
    point(A=[[2.0, 0.5, -1.0], [0.25, 3.0, 0.5], [1.0, -0.5, 1.5]]),
    point(A=[[1.0, -2.0, 0.5], [0.5, 1.5, 1.0], [2.0, 0.25, -1.0]]),
    point(A=[[0.5, 1.0, 2.0], [-1.5, 0.75, 1.0], [1.0, 2.5, -0.5]]),
)


def _quadratic_form_hessian(v: Values) -> Blocks:
    x, A = v["x"], v["A"]
    eye = np.eye(x.size)
    return {
        ("x", "x"): A + A.T,
        ("x", "A"): np.einsum("ik,l->ikl", eye, x) + np.einsum("il,k->ikl", eye, x),
        ("A", "A"): np.zeros(A.shape + A.shape),
    }


def _trace_product_hessian(v: Values) -> Blocks:
    A, B = v["A"], v["B"]
    m, n = A.shape
    return {
        ("A", "A"): np.zeros(A.shape + A.shape),
        ("A", "B"): np.einsum("il,jk->ijkl", np.eye(m), np.eye(n)),
        ("B", "B"): np.zeros(B.shape + B.shape),
    }


def _det_hessian(v: Values) -> Blocks:
    A = v["A"]
    inverse, determinant = np.linalg.inv(A), np.linalg.det(A)
    pairs = np.einsum("ji,lk->ijkl", inverse, inverse) - np.einsum("jk,li->ijkl", inverse, inverse)
    return {("A", "A"): determinant * pairs}


def _logdet_hessian(v: Values) -> Blocks:
    inverse = np.linalg.inv(v["A"])
    return {("A", "A"): -np.einsum("jk,li->ijkl", inverse, inverse)}


def _inverse_jacobian(v: Values) -> Blocks:
    inverse = np.linalg.inv(v["A"])
    return {("value", "A"): -np.einsum("ik,lj->ijkl", inverse, inverse)}


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "matvec",
        (
            point(A=[[1.0, 2.0, -0.5], [0.5, -1.0, 3.0]], x=[1.0, 0.5, 2.0]),
            point(A=[[0.25, -2.0, 1.5], [1.0, 0.75, -1.0]], x=[-1.5, 2.0, 0.25]),
            point(A=[[2.0, 1.0, 1.0], [-0.5, 0.5, 2.5]], x=[0.75, -1.0, 3.0]),
        ),
        value=lambda v: arrays({"value": v["A"] @ v["x"]}),
        jacobian=lambda v: blocks(
            {("value", "A"): np.einsum("ik,l->ikl", np.eye(v["A"].shape[0]), v["x"]), ("value", "x"): v["A"]}
        ),
    ),
    Scenario(
        "vecmat",
        (
            point(x=[1.0, -0.5], A=[[1.0, 2.0, -0.5], [0.5, -1.0, 3.0]]),
            point(x=[0.25, 2.0], A=[[0.25, -2.0, 1.5], [1.0, 0.75, -1.0]]),
            point(x=[-1.5, 0.75], A=[[2.0, 1.0, 1.0], [-0.5, 0.5, 2.5]]),
        ),
        value=lambda v: arrays({"value": v["x"] @ v["A"]}),
        jacobian=lambda v: blocks(
            {("value", "x"): v["A"].T, ("value", "A"): np.einsum("jl,k->jkl", np.eye(v["A"].shape[1]), v["x"])}
        ),
    ),
    of_scalar_value(
        "quadratic_form",
        [
            {**_SQUARE[0], **point(x=[1.0, -0.5, 2.0])},
            {**_SQUARE[1], **point(x=[0.25, 1.5, -1.0])},
            {**_SQUARE[2], **point(x=[-2.0, 0.75, 0.5])},
        ],
        value=lambda v: v["x"] @ v["A"] @ v["x"],
        gradient=lambda v: {"x": (v["A"] + v["A"].T) @ v["x"], "A": np.outer(v["x"], v["x"])},
        hessian=_quadratic_form_hessian,
    ),
    of_scalar_value(
        "trace_product",
        [
            point(A=[[1.0, 2.0, -0.5], [0.5, -1.0, 3.0]], B=[[1.0, 0.5], [2.0, -1.0], [0.25, 1.5]]),
            point(A=[[0.25, -2.0, 1.5], [1.0, 0.75, -1.0]], B=[[-0.5, 1.0], [0.75, 2.0], [1.0, -1.5]]),
            point(A=[[2.0, 1.0, 1.0], [-0.5, 0.5, 2.5]], B=[[1.5, -2.0], [0.5, 0.5], [-1.0, 1.0]]),
        ],
        value=lambda v: np.trace(v["A"] @ v["B"]),
        gradient=lambda v: {"A": v["B"].T, "B": v["A"].T},
        hessian=_trace_product_hessian,
    ),
    # At 3 × 3 the determinant is written out, without a factorisation, so it exists in every dtype.
    of_scalar_value(
        "det",
        _SQUARE,
        value=lambda v: np.linalg.det(v["A"]),
        gradient=lambda v: {"A": np.linalg.det(v["A"]) * np.linalg.inv(v["A"]).T},
        hessian=_det_hessian,
    ),
    of_scalar_value(
        "logdet",
        _SQUARE,
        value=lambda v: np.log(np.abs(np.linalg.det(v["A"]))),
        gradient=lambda v: {"A": np.linalg.inv(v["A"]).T},
        hessian=_logdet_hessian,
        dtypes=_WIDE,
    ),
    Scenario(
        "inverse",
        _SQUARE,
        value=lambda v: arrays({"value": np.linalg.inv(v["A"])}),
        jacobian=_inverse_jacobian,
        dtypes=_WIDE,
    ),
)
