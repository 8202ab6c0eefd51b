"""What each operator must give for a scenario: requests as the Python client takes them, and their answers by hand.

Answers come from the scenario's closed forms by contraction alone (J·v, c·J, H·v), never from JAX.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from nablad import trees
from scenarios import Scenario, Values

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
ORDERS = {"float64": 4, "float32": 3, "bfloat16": 2, "float16": 2}
"""The highest order asked of Derivative: narrow dtypes lose a few bits with every order."""
TOLERANCE = 64.0
"""In units of the dtype's eps, relative to the largest number of the reference."""


class Case:
    """One scenario in one dtype.

    Attributes:
        leaves: the floating-point inputs.
        outputs: the floating-point outputs.
        scalar: a scalar one of them, or "".
        tangent, cotangent: vectors of quarters, which are exact in every dtype.
    """

    def __init__(self, scenario: Scenario, dtype: str) -> None:
        self.scenario = scenario
        self.dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        first = scenario.points[0]
        pairs = scenario.jacobian(first)
        values = scenario.value(first)
        self.leaves = list(dict.fromkeys(column for _, column in pairs))
        self.outputs = list(dict.fromkeys(row for row, _ in pairs))
        self.scalar = next((name for name in self.outputs if np.shape(values[name]) == ()), "")
        random = np.random.default_rng(len(scenario.function))
        self.tangent = {leaf: random.integers(1, 6, np.shape(first[leaf])) / 4.0 for leaf in self.leaves}
        self.cotangent = {name: random.integers(1, 6, np.shape(values[name])) / 4.0 for name in self.outputs}

    def arguments(self, points: Sequence[Values]) -> dict[str, Any]:
        """One point's arguments, or those of several points with the points axis first, as keywords."""
        stacked = {name: np.stack([np.asarray(point[name]) for point in points]) for name in points[0]}
        return self.nested({name: array if len(points) > 1 else array[0, ...] for name, array in stacked.items()})

    def nested(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays by leaf as the structures of the arguments, in the case's dtype."""
        cast = {
            name: np.asarray(a).astype(self.dtype) if np.asarray(a).dtype.kind == "f" else a
            for name, a in leaves.items()
        }
        whole: dict[str, Any] = trees.nest(cast)
        return whole

    def products(self, point: Values, tangent: Mapping[str, Any]) -> dict[str, Any]:
        """Hessian times tangent, by leaf."""
        hessian = self.scenario.hessian(point) if self.scenario.hessian else {}
        return {
            row: sum(_contract(hessian[row, column], tangent[column]) for column in self.leaves) for row in self.leaves
        }


class Operator(NamedTuple):
    """How one operator is asked and what it must answer.

    Attributes:
        method: of the client.
        applies: whether it makes sense for the case.
        options: the keywords beside the function's arguments.
        answer: the parts of the result that depend on the operator, for one point.
    """

    method: str
    applies: Callable[[Case], bool]
    options: Callable[[Case], dict[str, Any]]
    answer: Callable[[Case, Values], dict[str, Any]]


def values(case: Case, point: Values, names: Sequence[str]) -> dict[str, Any]:
    """The `value` of a result about these outputs."""
    found = case.scenario.value(point)
    return {"value": _outputs({name: found[name] for name in names})}


def gradient(case: Case, point: Values, leaves: Sequence[str] | None = None) -> dict[str, Any]:
    """The value and gradient of the scalar output, as all operators on scalars give them."""
    pairs = case.scenario.jacobian(point)
    chosen = case.leaves if leaves is None else leaves
    return values(case, point, [case.scalar]) | {"gradient": {leaf: pairs[case.scalar, leaf] for leaf in chosen}}


def gradient_and_norms(case: Case, point: Values) -> dict[str, Any]:
    """The value, the gradient, and its L2 norms, over all leaves together and of each."""
    found = gradient(case, point)
    norms = {leaf: np.linalg.norm(np.ravel(slope)) for leaf, slope in found["gradient"].items()}
    return found | {"norm": np.linalg.norm(list(norms.values())), "norms": norms}


def jacobian(case: Case, point: Values) -> dict[str, Any]:
    """The values and all blocks."""
    pairs = case.scenario.jacobian(point)
    rows = {row: {leaf: pairs[row, leaf] for leaf in case.leaves} for row in case.outputs}
    return values(case, point, case.outputs) | {"jacobian": _outputs(rows)}


def hessian(case: Case, point: Values, rows: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    """Value, gradient and a rectangular part of the Hessian."""
    pairs = case.scenario.hessian(point) if case.scenario.hessian else {}
    blocks = {row: {column: pairs[row, column] for column in columns} for row in rows}
    return gradient(case, point, rows) | {"hessian": blocks}


def hessian_diagonal(case: Case, point: Values) -> dict[str, Any]:
    """Value, gradient and diagonal."""
    pairs = case.scenario.hessian(point) if case.scenario.hessian else {}
    diagonals = {}
    for leaf in case.leaves:
        shape = np.shape(point[leaf])
        size = int(np.prod(shape))
        diagonals[leaf] = np.diagonal(np.reshape(pairs[leaf, leaf], (size, size))).reshape(shape)
    return gradient(case, point) | {"hessian": diagonals}


def hvp(case: Case, point: Values) -> dict[str, Any]:
    """Value, gradient and the products with the stack (v, −2v)."""
    products = case.products(point, case.tangent)
    return gradient(case, point) | {"hvp": {leaf: np.stack([p, -2 * p]) for leaf, p in products.items()}}


def jvp(case: Case, point: Values) -> dict[str, Any]:
    """Values and J·v."""
    pairs = case.scenario.jacobian(point)
    moved = {row: sum(_contract(pairs[row, leaf], case.tangent[leaf]) for leaf in case.leaves) for row in case.outputs}
    return values(case, point, case.outputs) | {"jvp": _outputs(moved)}


def vjp(case: Case, point: Values) -> dict[str, Any]:
    """Values and c·J."""
    pairs = case.scenario.jacobian(point)
    pulled = {
        leaf: sum(np.tensordot(c, pairs[row, leaf], np.ndim(c)) for row, c in case.cotangent.items())
        for leaf in case.leaves
    }
    return values(case, point, case.outputs) | {"vjp": pulled}


def directional_derivative(case: Case, point: Values) -> dict[str, Any]:
    """Value, ∇f·u, ∇f/‖∇f‖ and ‖∇f‖."""
    pairs = case.scenario.jacobian(point)
    slopes = {leaf: pairs[case.scalar, leaf] for leaf in case.leaves}
    length = np.sqrt(sum(np.sum(vector**2) for vector in case.tangent.values()))
    rate = np.sqrt(sum(np.sum(slope**2) for slope in slopes.values()))
    along = sum(np.sum(slope * case.tangent[leaf]) for leaf, slope in slopes.items()) / length
    return values(case, point, [case.scalar]) | {
        "derivative": along,
        "max_rate": rate,
        "steepest_ascent": trees.nest({leaf: slope / (rate or 1) for leaf, slope in slopes.items()}),
    }


def derivative(case: Case, point: Values) -> dict[str, Any]:
    """Values and the derivatives of all orders, each order a part of its own: magnitudes differ by order."""
    found = values(case, point, case.outputs)
    if case.scenario.derivative is not None:
        for order in range(1, ORDERS[case.dtype.name] + 1):
            nth = case.scenario.derivative(point, order)
            found[f"derivatives[{order - 1}]"] = _outputs({name: nth[name] for name in case.outputs})
    return found


def laplacian(case: Case, point: Values) -> dict[str, Any]:
    """Value, gradient and the sum of the second derivatives."""
    diagonals = hessian_diagonal(case, point)["hessian"]
    return gradient(case, point) | {"laplacian": sum(np.sum(diagonal) for diagonal in diagonals.values())}


def along_a_line(case: Case, point: Values) -> dict[str, Any]:
    """Value, ∇f·v and v·H·v."""
    slopes = gradient(case, point)["gradient"]
    products = case.products(point, case.tangent)
    return values(case, point, [case.scalar]) | {
        f"derivatives[{order}]": _outputs(
            {case.scalar: sum(np.sum(terms[leaf] * vector) for leaf, vector in case.tangent.items())}
        )
        for order, terms in enumerate((slopes, products))
    }


def _sizes_of_terms(case: Case, point: Values, part: str, expected: Any) -> Any:
    """What the rounding of a part is in proportion to: for a sum of terms that may cancel, the terms."""
    pairs = case.scenario.hessian(point) if case.scenario.hessian else {}
    if part == "derivative":  # ∇f·u
        return directional_derivative(case, point)["max_rate"]
    if part == "laplacian":
        return sum(np.sum(np.abs(diagonal)) for diagonal in hessian_diagonal(case, point)["hessian"].values())
    if part == "derivatives[0]" and case.scalar and case.scenario.derivative is None:
        slopes = gradient(case, point)["gradient"]
        return sum(np.sum(np.abs(slopes[leaf] * vector)) for leaf, vector in case.tangent.items())
    if part == "derivatives[1]" and case.scenario.derivative is None:
        return sum(
            _contract(np.abs(_contract(pairs[row, column], np.abs(case.tangent[column]))), case.tangent[row])
            for row in case.leaves for column in case.leaves
        )  # fmt: skip
    return expected


def _derivative_options(case: Case) -> dict[str, Any]:
    scalar = next(leaf for leaf in case.leaves if np.shape(case.scenario.points[0][leaf]) == ())
    return {"wrt": scalar, "order": ORDERS[case.dtype.name]}


def _hvp_options(case: Case) -> dict[str, Any]:
    stack = case.nested({leaf: np.stack([vector, -2 * vector]) for leaf, vector in case.tangent.items()})
    return {"tangent": stack, "stacked": True, "tangent_batched": False, "wrt": case.leaves}


def _vjp_options(case: Case) -> dict[str, Any]:
    cast = {name: vector.astype(case.dtype) for name, vector in case.cotangent.items()}
    return {"cotangent": _outputs(cast), "cotangent_batched": False, "wrt": case.leaves}


def _has_scalar(case: Case) -> bool:
    return bool(case.scalar)


def _has_hessian(case: Case) -> bool:
    return case.scenario.hessian is not None


def _has_curvature(case: Case) -> bool:
    """In the widest and the narrowest dtype: what lies between differs in nothing that these operators see."""
    return _has_hessian(case) and case.dtype.name in ("float64", "float16")


OPERATORS: dict[str, Operator] = {
    "evaluate": Operator(
        "evaluate", lambda _: True, lambda _: {},
        lambda case, point: values(case, point, list(case.scenario.value(point))),
    ),
    "gradient": Operator(
        "gradient", _has_scalar, lambda case: {"wrt": case.leaves, "output": case.scalar}, gradient_and_norms
    ),
    "jacobian": Operator("jacobian", lambda _: True, lambda case: {"wrt": case.leaves}, jacobian),
    "hessian": Operator(
        "hessian", _has_hessian, lambda case: {"wrt": case.leaves},
        lambda case, point: hessian(case, point, case.leaves, case.leaves),
    ),
    "hessian block": Operator(
        "hessian", _has_hessian, lambda case: {"wrt": case.leaves[:1], "columns": case.leaves[-1:]},
        lambda case, point: hessian(case, point, case.leaves[:1], case.leaves[-1:]),
    ),
    "hessian diagonal": Operator(
        "hessian", _has_hessian, lambda case: {"wrt": case.leaves, "diagonal": True}, hessian_diagonal
    ),
    "hvp": Operator("hvp", _has_hessian, _hvp_options, hvp),
    "jvp": Operator(
        "jvp", lambda _: True, lambda case: {"tangent": case.nested(case.tangent), "tangent_batched": False}, jvp
    ),
    "vjp": Operator("vjp", lambda _: True, _vjp_options, vjp),
    "directional derivative": Operator(
        "directional_derivative", _has_scalar,
        lambda case: {"direction": case.nested(case.tangent), "direction_batched": False, "output": case.scalar},
        directional_derivative,
    ),
    "derivative": Operator(
        "derivative", lambda case: case.scenario.derivative is not None, _derivative_options, derivative
    ),
    "derivative along a line": Operator(
        "derivative", lambda case: _has_curvature(case) and case.scenario.derivative is None,
        lambda case: {
            "direction": case.nested(case.tangent), "direction_batched": False, "order": 2, "outputs": [case.scalar],
        },
        along_a_line,
    ),
    "laplacian": Operator("laplacian", _has_curvature, lambda case: {"wrt": case.leaves}, laplacian),
}  # fmt: skip


def assert_agrees(case: Case, operator: Operator, result: Any, points: Sequence[Values]) -> None:
    """Compares a client's result with the answers by hand, point by point and part by part."""
    for index, point in enumerate(points):
        for part, expected in operator.answer(case, point).items():
            name, _, order = part.rstrip("]").partition("[")
            found = _indexed(getattr(result, name), index if len(points) > 1 else None)
            if order:
                found = _indexed(found, int(order))
            reference = _sizes_of_terms(case, point, part, expected)
            numbers = [np.abs(np.asarray(leaf, np.float64)) for leaf in _flattened(reference).values()]
            scale = max((float(np.max(number, initial=0)) for number in numbers), default=0.0) or 1.0
            bound = TOLERANCE * EPS[case.dtype.name] * case.scenario.tolerance * scale
            flat, wanted = _flattened(found), _flattened(expected)
            assert set(flat) == set(wanted), part
            for path, want in wanted.items():
                have = flat[path].astype(np.float64)
                assert have.shape == np.shape(want), (part, path)
                assert np.max(np.abs(have - want), initial=0) <= bound, (part, path, index, have, want)


def _outputs(by_name: Mapping[str, Any]) -> Any:
    """What the client makes of outputs: bare for a function that returns one array."""
    return by_name["value"] if list(by_name) == ["value"] else trees.nest(by_name)


def _contract(block: Any, vector: Any) -> Any:
    return np.tensordot(block, vector, np.ndim(vector))


def _indexed(tree: Any, index: int | None) -> Any:
    """The same structure with each array replaced by its element `index`, or by itself for None."""
    if isinstance(tree, Mapping):
        return {key: _indexed(child, index) for key, child in tree.items()}
    if isinstance(tree, list):
        return [_indexed(child, index) for child in tree]
    return np.asarray(tree) if index is None else np.asarray(tree)[index]


def _flattened(tree: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    if isinstance(tree, Mapping | list):
        pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        return {deeper: leaf for key, child in pairs for deeper, leaf in _flattened(child, (*path, key)).items()}
    return {path: tree}
