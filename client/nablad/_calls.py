"""Every call as data: what to send and how to read the answer. Pure: both clients only carry it out.

Each operator is one function from a description and the caller's arguments to a request and a way to read its response.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from google.protobuf.message import Message

from nablad import results, trees
from nablad._arguments import Arguments, Batched, argument_of, arrange_outputs, arrays, output_tensors
from nablad._clipping import clipping
from nablad._differences import Differencing, finite_difference
from nablad._non_finite import first_non_finite
from nablad.errors import InvalidArgument, InvalidOption
from nablad.sparse import Patterns, SparseMatrix, Sparsity, native, sparsity
from nablad.tensors import DTYPES, to_array
from nablad.v1 import catalog_pb2, function_pb2, tensor_pb2
from nablad.v1 import differentiation_pb2 as pb

Mode = Literal["auto", "forward", "reverse"]
Names = str | Sequence[str] | None
_R_co = TypeVar("_R_co", covariant=True)

_MODES = {"auto": pb.MODE_AUTO, "forward": pb.MODE_FORWARD, "reverse": pb.MODE_REVERSE}


class _Missing:
    """The absence of an argument for which None is a value."""


MISSING = _Missing()


@dataclass(frozen=True)
class Prepared(Generic[_R_co]):
    """A request, and how to read its response."""

    request: Message
    read: Callable[[Any], _R_co]


@dataclass(frozen=True, eq=False)
class Operator(Generic[_R_co]):
    """What can be asked of a function.

    Attributes:
        name: of the clients' method.
        method: of the RPC.
        prepare: makes the request, once the function's description is known.
        vector: the keyword for the vector that it takes besides the inputs; empty if it takes none.
    """

    name: str
    method: str
    prepare: Callable[..., Prepared[_R_co]]
    vector: str = ""

    @property
    def field(self) -> int:
        """The number of its field in Operation and Answer."""
        return pb.Operation.DESCRIPTOR.fields_by_name[self.name].number

    def prepared(
        self,
        info: results.FunctionInfo,
        function: str,
        positional: Sequence[Any],
        named: Mapping[str, Any],
        *,
        vector: Any,
        options: Mapping[str, Any],
        patterns: Patterns | None = None,
    ) -> Prepared[_R_co]:
        """The request with these arguments. Raises InvalidArgument if they do not fit the function.

        `patterns` are those that are known of sparse matrices.
        """
        if "sparse" in options:
            options = dict(options)
            options["patterns"] = (Patterns() if patterns is None else patterns) if options.pop("sparse") else None
        if self.vector:
            return self.prepare(info, function, positional, named, vector=vector, **options)
        return self.prepare(info, function, positional, named, **options)


def _evaluate(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, outputs: Names, batched: Batched,
) -> Prepared[results.Evaluation]:  # fmt: skip
    """The function itself."""
    arguments = Arguments.bind(info, positional, named)
    request = pb.EvaluateRequest(
        function=function, inputs=arguments.tensors(batched), outputs=output_names(info, outputs)
    )  # fmt: skip
    return Prepared(request, lambda response: results.Evaluation(*common(response, response.values)))


def _gradient(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, wrt: Names, output: str | None, mode: Mode, batched: Batched,
    differences: Differencing = None, clip_norm: float | None = None, clip_value: float | None = None,
) -> Prepared[results.Gradient]:  # fmt: skip
    """First derivatives of a scalar output."""
    arguments = Arguments.bind(info, positional, named)
    chosen = arguments.choose(wrt)
    request = pb.GradientRequest(
        function=function, inputs=arguments.tensors(batched), wrt=chosen.leaves, output=output or "",
        mode=mode_number(mode), finite_difference=finite_difference(differences),
        clipping=clipping(clip_norm, clip_value),
    )  # fmt: skip

    def read(response: pb.GradientResponse) -> results.Gradient:
        shared = common(response, response.values, response.gradients, response.errors, [response.norms])
        gradients = arrays(response.gradients)
        norm, each = _norms(response)
        return results.Gradient(
            *shared,
            chosen.arrange(gradients),
            None if differences is None else chosen.arrange(arrays(response.errors)),
            norm,
            None if norm is None else chosen.arrange(dict(zip(gradients, each, strict=True))),
            first_non_finite(response, gradients),
        )

    return Prepared(request, read)


def _jacobian(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, wrt: Names, outputs: Names, mode: Mode, batched: Batched,
    differences: Differencing = None, patterns: Patterns | None = None,
) -> Prepared[results.Jacobian]:  # fmt: skip
    """First derivatives of any outputs."""
    arguments = Arguments.bind(info, positional, named)
    chosen = arguments.choose(wrt)
    request = pb.JacobianRequest(
        function=function, inputs=arguments.tensors(batched), wrt=chosen.leaves, outputs=output_names(info, outputs),
        mode=mode_number(mode), finite_difference=finite_difference(differences),
    )  # fmt: skip

    if patterns is not None:
        request.structure = pb.JACOBIAN_STRUCTURE_SPARSE
        matrix = _sparse(request, patterns)

        def read_sparse(response: pb.JacobianResponse) -> results.Jacobian:
            found = matrix(response.sparse)
            return results.Jacobian(*common(response, response.values, [response.sparse]), native(found), found)

        return Prepared(request, read_sparse)

    def nested(blocks: Sequence[tensor_pb2.Block]) -> Any:
        return arrange_outputs({row: chosen.arrange(columns) for row, columns in _rows(blocks).items()})

    def read(response: pb.JacobianResponse) -> results.Jacobian:
        shared = common(response, response.values, response.blocks, response.errors)
        errors = None if differences is None else nested(response.errors)
        return results.Jacobian(*shared, nested(response.blocks), errors=errors)

    return Prepared(request, read)


def _hessian(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, wrt: Names, columns: Names, diagonal: bool, samples: int | None, seed: int, output: str | None, mode: Mode,
    batched: Batched, differences: Differencing = None, patterns: Patterns | None = None,
) -> Prepared[results.Hessian]:  # fmt: skip
    """Second derivatives of a scalar output."""
    arguments = Arguments.bind(info, positional, named)
    rows = arguments.choose(wrt)
    across = rows if columns is None else arguments.choose(columns)
    structure = pb.HESSIAN_STRUCTURE_DIAGONAL if diagonal else pb.HESSIAN_STRUCTURE_DENSE
    request = pb.HessianRequest(
        function=function, inputs=arguments.tensors(batched), wrt=rows.leaves,
        columns=() if columns is None else across.leaves, output=output or "", structure=structure,
        mode=mode_number(mode), estimate=_estimate(samples, seed), finite_difference=finite_difference(differences),
    )  # fmt: skip

    if patterns is not None:
        if diagonal:
            raise InvalidArgument("diagonal and sparse are two forms of a Hessian; ask for one of them")
        request.structure = pb.HESSIAN_STRUCTURE_SPARSE
        matrix = _sparse(request, patterns)

        def read_sparse(response: pb.HessianResponse) -> results.Hessian:
            found = matrix(response.sparse)
            rest = common(response, response.values, response.gradients, [response.sparse])
            return results.Hessian(*rest, rows.arrange(arrays(response.gradients)), native(found), sparse=found)

        return Prepared(request, read_sparse)

    def matrix_of(blocks: Sequence[tensor_pb2.Block]) -> Any:
        return rows.arrange({row: across.arrange(line) for row, line in _rows(blocks).items()})

    def read(response: pb.HessianResponse) -> results.Hessian:
        found = rows.arrange(arrays(response.diagonals)) if diagonal else matrix_of(response.blocks)
        shared = common(
            response, response.values, response.gradients, response.blocks, response.diagonals, response.errors
        )
        standard = None if samples is None else rows.arrange(arrays(response.standard_errors))
        errors = None if differences is None else matrix_of(response.errors)
        return results.Hessian(*shared, rows.arrange(arrays(response.gradients)), found, standard, errors=errors)

    return Prepared(request, read)


def _hvp(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, vector: Any, stacked: bool, wrt: Names, output: str | None, mode: Mode, batched: Batched,
    tangent_batched: Batched | None, differences: Differencing = None,
) -> Prepared[results.Hvp]:  # fmt: skip
    """Hessian times tangents."""
    inputs, vector = _split(info, positional, named, vector, "tangent")
    arguments = Arguments.bind(info, inputs, named)
    tangents, moved = arguments.vectors(vector, _vector_batched(batched, tangent_batched), "tangent")
    chosen = moved if wrt is None else arguments.choose(wrt)
    request = pb.HvpRequest(
        function=function, inputs=arguments.tensors(batched), tangents=tangents, stacked=stacked,
        wrt=() if wrt is None else chosen.leaves, output=output or "", mode=mode_number(mode),
        finite_difference=finite_difference(differences),
    )  # fmt: skip
    return Prepared(request, lambda response: results.Hvp(
        *common(response, response.values, response.gradients, response.products, response.errors),
        chosen.arrange(arrays(response.gradients)), chosen.arrange(arrays(response.products)),
        None if differences is None else chosen.arrange(arrays(response.errors)),
    ))  # fmt: skip


def _jvp(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, vector: Any, stacked: bool, outputs: Names, batched: Batched, tangent_batched: Batched | None,
    differences: Differencing = None,
) -> Prepared[results.Jvp]:  # fmt: skip
    """Jacobian times tangents."""
    inputs, vector = _split(info, positional, named, vector, "tangent")
    arguments = Arguments.bind(info, inputs, named)
    tangents, _ = arguments.vectors(vector, _vector_batched(batched, tangent_batched), "tangent")
    request = pb.JvpRequest(
        function=function, inputs=arguments.tensors(batched), tangents=tangents, stacked=stacked,
        outputs=output_names(info, outputs), finite_difference=finite_difference(differences),
    )  # fmt: skip
    return Prepared(request, lambda response: results.Jvp(
        *common(response, response.values, response.products, response.errors),
        arrange_outputs(arrays(response.products)),
        None if differences is None else arrange_outputs(arrays(response.errors)),
    ))  # fmt: skip


def _vjp(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, vector: Any, stacked: bool, wrt: Names, batched: Batched, cotangent_batched: Batched | None,
) -> Prepared[results.Vjp]:  # fmt: skip
    """Cotangents times Jacobian."""
    inputs, vector = _split(info, positional, named, vector, "cotangent")
    arguments = Arguments.bind(info, inputs, named)
    chosen = arguments.choose(wrt)
    request = pb.VjpRequest(
        function=function, inputs=arguments.tensors(batched), stacked=stacked, wrt=chosen.leaves,
        cotangents=output_tensors(info, vector, _vector_batched(batched, cotangent_batched)),
    )  # fmt: skip
    return Prepared(request, lambda response: results.Vjp(
        *common(response, response.values, response.products), chosen.arrange(arrays(response.products))
    ))  # fmt: skip


def _directional_derivative(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, vector: Any, output: str | None, batched: Batched, direction_batched: Batched | None,
) -> Prepared[results.DirectionalDerivative]:  # fmt: skip
    """Rate of change along a unit direction."""
    inputs, vector = _split(info, positional, named, vector, "direction")
    arguments = Arguments.bind(info, inputs, named)
    tensors, chosen = arguments.vectors(vector, _vector_batched(batched, direction_batched), "direction")
    request = pb.DirectionalDerivativeRequest(
        function=function, inputs=arguments.tensors(batched), direction=tensors, output=output or ""
    )
    return Prepared(request, lambda response: results.DirectionalDerivative(
        *common(response, response.values, response.steepest_ascent, [response.derivative, response.max_rate]),
        to_array(response.derivative.tensor), chosen.arrange(arrays(response.steepest_ascent)),
        to_array(response.max_rate.tensor),
    ))  # fmt: skip


def _derivative(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, vector: Any, order: int, wrt: str | None, outputs: Names, batched: Batched, direction_batched: Batched | None,
) -> Prepared[results.Derivative]:  # fmt: skip
    """Derivatives of orders 1 to n in one real variable: an input, or the way along a line."""
    arguments = Arguments.bind(info, positional, named)
    if order < 0:
        raise InvalidArgument(f"order is {order}; expected 1 or more")
    direction: Sequence[tensor_pb2.NamedTensor] = ()
    if vector is not MISSING:
        direction, _ = arguments.vectors(vector, _vector_batched(batched, direction_batched), "direction")
    request = pb.DerivativeRequest(
        function=function, inputs=arguments.tensors(batched), wrt=wrt or "", outputs=output_names(info, outputs),
        order=order, direction=direction,
    )  # fmt: skip
    return Prepared(request, lambda response: results.Derivative(
        *common(response, response.values, response.derivatives), arrange_outputs(arrays(response.derivatives))
    ))  # fmt: skip


def _laplacian(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, samples: int | None, seed: int, wrt: Names, output: str | None, mode: Mode, batched: Batched,
) -> Prepared[results.Laplacian]:  # fmt: skip
    """The trace of the Hessian of a scalar output."""
    arguments = Arguments.bind(info, positional, named)
    chosen = arguments.choose(wrt)
    request = pb.LaplacianRequest(
        function=function, inputs=arguments.tensors(batched), wrt=chosen.leaves, output=output or "",
        mode=mode_number(mode), estimate=_estimate(samples, seed),
    )  # fmt: skip
    return Prepared(request, lambda response: results.Laplacian(
        *common(response, response.values, response.gradients, [response.laplacian]),
        chosen.arrange(arrays(response.gradients)), to_array(response.laplacian.tensor),
        None if samples is None else to_array(response.standard_error.tensor),
    ))  # fmt: skip


EVALUATE = Operator("evaluate", "Evaluate", _evaluate)
GRADIENT = Operator("gradient", "Gradient", _gradient)
JACOBIAN = Operator("jacobian", "Jacobian", _jacobian)
HESSIAN = Operator("hessian", "Hessian", _hessian)
HVP = Operator("hvp", "Hvp", _hvp, "tangent")
JVP = Operator("jvp", "Jvp", _jvp, "tangent")
VJP = Operator("vjp", "Vjp", _vjp, "cotangent")
DIRECTIONAL_DERIVATIVE = Operator(
    "directional_derivative", "DirectionalDerivative", _directional_derivative, "direction"
)
DERIVATIVE = Operator("derivative", "Derivative", _derivative, "direction")
LAPLACIAN = Operator("laplacian", "Laplacian", _laplacian)
OPERATORS: dict[str, Operator[results.Result]] = {
    operator.name: operator
    for operator in (
        EVALUATE, GRADIENT, JACOBIAN, HESSIAN, HVP, JVP, VJP, DIRECTIONAL_DERIVATIVE, DERIVATIVE, LAPLACIAN,
    )
}  # fmt: skip
"""Every operator by name."""


class Asked(NamedTuple):
    """What keywords say to an operator.

    Attributes:
        operator: the operator.
        named: the arguments of the function that they give.
        options: all options of the operator, by default what its method has.
        vector: the vector that they give; MISSING if they do not.
    """

    operator: Operator[Any]
    named: dict[str, Any]
    options: dict[str, Any]
    vector: Any


def split(methods: type, operator: str, keywords: Mapping[str, Any]) -> Asked:
    """Tells the options of an operator from the arguments of a function.

    `methods` has the operators as methods, whose options have defaults. Raises InvalidOption for another operator.
    """
    if operator not in OPERATORS:
        raise InvalidOption(f"operator is {operator!r}; expected one of {', '.join(OPERATORS)}")
    found = OPERATORS[operator]
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(getattr(methods, operator)).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "timeout"
    }
    named = {name: value for name, value in keywords.items() if name not in defaults}
    options = {name: keywords.get(name, default) for name, default in defaults.items()}
    vector = options.pop(found.vector, MISSING)
    return Asked(found, named, options, vector)


def explain_request(
    asked: Asked, info: results.FunctionInfo, function: str, positional: Sequence[Any]
) -> catalog_pb2.ExplainRequest:
    """The request that asks how a call would be answered."""
    prepared = asked.operator.prepared(
        info, function, positional, asked.named, vector=asked.vector, options=asked.options
    )
    request = catalog_pb2.ExplainRequest()
    getattr(request, asked.operator.name).CopyFrom(prepared.request)
    return request


def explanation(response: catalog_pb2.ExplainResponse) -> results.Explanation:
    """A response about a call, read."""
    return results.Explanation(
        function=response.function,
        operator=_operator_name(response.operator),
        mode=response.mode,
        reason=response.reason,
        function_cost=_cost(response.function_cost),
        cost=_cost(response.cost),
        result_bytes=response.result_bytes,
        programs=tuple(
            results.ProgramInfo(
                program.points, program.strategy, _cost(program.cost), program.compile_nanoseconds * 1e-9
            )
            for program in response.programs
        ),
        nonzeros=response.nonzeros if response.HasField("sparsity") else None,
        colors=response.sparsity.colors if response.HasField("sparsity") else None,
    )


def sparsity_request(
    operator: str, info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, wrt: Names, output: str | None, outputs: Names,
) -> catalog_pb2.GetSparsityRequest:  # fmt: skip
    """The request that asks for the pattern of a Hessian or a Jacobian.

    Raises:
        InvalidOption: another operator is named, or an option of the other one is given.
    """
    arguments = Arguments.bind(info, positional, named)
    inputs, leaves = arguments.tensors(batched=False), arguments.choose(wrt).leaves
    if operator == "hessian" and outputs is None:
        return catalog_pb2.GetSparsityRequest(
            hessian=pb.HessianRequest(function=function, inputs=inputs, wrt=leaves, output=output or "")
        )
    if operator == "jacobian" and output is None:
        names = output_names(info, outputs)
        return catalog_pb2.GetSparsityRequest(
            jacobian=pb.JacobianRequest(function=function, inputs=inputs, wrt=leaves, outputs=names)
        )
    raise InvalidOption(
        f"operator={operator!r} with output={output!r} and outputs={outputs!r}; expected 'hessian', perhaps with "
        "output, or 'jacobian', perhaps with outputs"
    )


def sparsity_found(response: catalog_pb2.GetSparsityResponse) -> Sparsity:
    """A response about a pattern, read."""
    return sparsity(response.pattern, response.nanoseconds * 1e-9)


def _sparse(request: Any, patterns: Patterns) -> Callable[[tensor_pb2.SparseMatrix], SparseMatrix]:
    """What reads the matrix that answers a request, which from now on says which pattern is known."""
    key = (  # all of the request but the elements of its tensors
        type(request).__name__,
        *((field.name, str(value)) for field, value in request.ListFields() if field.name != "inputs"),
        *((each.name, each.batched, each.tensor.dtype, *each.tensor.shape) for each in request.inputs),
    )
    known = patterns.find(key)
    if known is not None:
        request.known_pattern = known.fingerprint
    return lambda matrix: patterns.matrix(key, known, matrix)


def _cost(cost: catalog_pb2.Cost) -> results.Cost:
    return results.Cost(cost.flops, cost.accessed_bytes, cost.nanoseconds * 1e-9, cost.memory_bytes)


def describe_request(function: str) -> catalog_pb2.DescribeFunctionRequest:
    """The request that asks for a function's description."""
    return catalog_pb2.DescribeFunctionRequest(function=function)


def describe(function: function_pb2.Function) -> results.FunctionInfo:
    """A function's description, read."""
    return results.FunctionInfo(
        name=function.name,
        version=function.version,
        summary=function.summary,
        documentation=function.documentation,
        source=function.source,
        inputs=tuple(map(_tensor_info, function.signature.inputs)),
        outputs=tuple(map(_tensor_info, function.signature.outputs)),
        operators=tuple(_operator_name(operator) for operator in function.operators),
        engine=_engine_name(function.engine),
    )


def _tensor_info(spec: function_pb2.TensorSpec) -> results.TensorInfo:
    shape = tuple(
        dim.size if dim.HasField("size") else dim.symbol if dim.HasField("symbol") else None for dim in spec.shape
    )
    names = tuple(
        DTYPES[dtype].name if dtype in DTYPES else tensor_pb2.Dtype.Name(dtype).removeprefix("DTYPE_").lower()
        for dtype in spec.dtypes
    )
    domain = (spec.domain.lowest, spec.domain.highest) if spec.HasField("domain") else None
    return results.TensorInfo(spec.name, names, None if spec.any_shape else shape, spec.differentiable, domain)


def _engine_name(engine: function_pb2.Engine.ValueType) -> str:
    if engine == function_pb2.ENGINE_UNSPECIFIED:  # of a server older than this field
        return "jax"
    if engine not in function_pb2.Engine.values():  # of a server newer than this client
        return f"engine_{engine}"
    return function_pb2.Engine.Name(engine).removeprefix("ENGINE_").lower()


def _operator_name(operator: function_pb2.Operator.ValueType) -> str:
    if operator not in function_pb2.Operator.values():  # of a server newer than this client
        return f"operator_{operator}"
    return function_pb2.Operator.Name(operator).removeprefix("OPERATOR_").lower()


def _split(
    info: results.FunctionInfo, positional: Sequence[Any], named: Mapping[str, Any], vector: Any, what: str
) -> tuple[Sequence[Any], Any]:
    """The inputs and the vector: the latter by keyword, or by position after all inputs."""
    if vector is not MISSING:
        return positional, vector
    parameters = len(dict.fromkeys(argument_of(spec.name) for spec in info.inputs))
    if positional and len(positional) + len(named) == parameters + 1:
        return positional[:-1], positional[-1]
    raise InvalidArgument(f"give the {what} after the inputs of {info.reference}, or as {what}=")


def _vector_batched(inputs: Batched, vectors: Batched | None) -> Batched:
    """Whether vectors run over points: if not said, when any input does."""
    return bool(inputs) if vectors is None else vectors


def output_names(info: results.FunctionInfo, names: Names) -> list[str]:
    """The outputs that names mean: outputs, or the parts of a structure under that key."""
    wanted = [names] if isinstance(names, str) else list(names or ())
    known = [spec.name for spec in info.outputs]
    found: list[str] = []
    for name in wanted:
        inside = [output for output in known if output != name and str(trees.parse(output)[0]) == name]
        found += inside if name not in known and inside else [name]
    return found


def _estimate(samples: int | None, seed: int) -> pb.Estimate | None:
    if samples is None:
        return None
    if not 0 <= samples < 1 << 32 or not 0 <= seed < 1 << 64:
        raise InvalidArgument(f"samples={samples}, seed={seed}; expected 2 to 65536 samples and a seed of 64 bits")
    return pb.Estimate(samples=samples, seed=seed)


def mode_number(mode: Mode) -> pb.Mode.ValueType:
    """The mode on the wire. Raises InvalidArgument for one that there is not."""
    if mode not in _MODES:
        raise InvalidArgument(f"mode is {mode!r}; expected one of {', '.join(_MODES)}")
    return _MODES[mode]


def _norms(response: pb.GradientResponse) -> tuple[Any, Sequence[Any]]:
    """The global norm and those of the inputs: numbers, or arrays of all points; None of a server that tells none."""
    if not response.HasField("norms"):
        return None, ()
    norms = to_array(response.norms.tensor)
    norm, *each = norms.T if norms.ndim > 1 else norms.tolist()
    return norm, each


def _rows(blocks: Sequence[tensor_pb2.Block]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for block in blocks:
        rows.setdefault(block.row, {})[block.column] = to_array(block.tensor)
    return rows


def common(response: Any, values: Any, *others: Any) -> tuple[Any, bool, results.Execution]:
    """What all results have: value, non_finite, execution."""
    execution = response.execution
    flagged = any(item.non_finite for group in (values, *others) for item in group)
    return (
        arrange_outputs(arrays(values)),
        flagged,
        execution_of(execution),
    )


def execution_of(execution: pb.Execution) -> results.Execution:
    """How an answer came about, read."""
    return results.Execution(
        execution.function,
        execution.batch_points,
        execution.queue_nanoseconds * 1e-9,
        execution.compile_nanoseconds * 1e-9,
        execution.compute_nanoseconds * 1e-9,
    )
