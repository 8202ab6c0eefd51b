"""CatalogService: what functions there are, how they were used, and what derivatives of theirs cost."""

from collections.abc import Callable

from nablad.errors import InvalidOption
from nablad.tensors import NUMBERS
from nablad.v1 import catalog_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.patterns import Patterns
from nablad_server.functions.function import Function
from nablad_server.functions.registry import Registry
from nablad_server.functions.signature import Dim, TensorSpec
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.caller import current
from nablad_server.serving.decode import Decoder
from nablad_server.serving.endpoint import Endpoint
from nablad_server.serving.explain import Explainer
from nablad_server.serving.gate import Gate
from nablad_server.serving.sparsity import message
from nablad_server.serving.sparsity_requests import sparsity_of
from nablad_server.serving.statistics import Statistics
from nablad_server.serving.threads import Threads

SERVICE = pb.DESCRIPTOR.services_by_name["CatalogService"]
MAX_PAGE = 1000

ENGINES = {
    "jax": function_pb2.ENGINE_JAX, "torch": function_pb2.ENGINE_TORCH, "python": function_pb2.ENGINE_PYTHON,
}  # fmt: skip
"""The wire's number of each engine."""

LOOKING_UP, WAITING_FOR_LOOKING_UP = 2, 1024
"""So many calls may look things up, and so many wait for those."""

COMPUTING, WAITING_FOR_COMPUTING = 4, 16
"""So many calls may wait for compilations and patterns, and so many wait for those."""


def methods(
    *,
    registry: Registry,
    decoder: Decoder,
    patterns: Patterns,
    statistics: Statistics,
    explainer: Explainer,
    gate: Gate,
) -> dict[str, Callable[[Call], Handler]]:
    """For each RPC, by its full name, what makes a handler for a call."""
    looking_up = Threads("nablad-catalog", LOOKING_UP, waiting=WAITING_FOR_LOOKING_UP)
    computing = Threads("nablad-computing", COMPUTING, waiting=WAITING_FOR_COMPUTING)

    def list_functions(request: pb.ListFunctionsRequest, _: float) -> pb.ListFunctionsResponse:
        functions = _visible(registry)
        names = [function.name for function in functions]
        start = 0
        if request.page_token:
            if request.page_token not in names:
                raise InvalidOption(
                    f"page_token {request.page_token[:100]!r} was not given by this server; start without one",
                    field="page_token",
                )
            start = names.index(request.page_token)
        end = start + min(request.page_size or MAX_PAGE, MAX_PAGE)
        return pb.ListFunctionsResponse(
            functions=[describe(function, documentation=False) for function in functions[start:end]],
            next_page_token=names[end] if end < len(names) else "",
        )

    def describe_function(request: pb.DescribeFunctionRequest, _: float) -> pb.DescribeFunctionResponse:
        return pb.DescribeFunctionResponse(function=describe(registry.get(request.function), documentation=True))

    def get_sparsity(request: pb.GetSparsityRequest, seconds: float) -> pb.GetSparsityResponse:
        pattern = sparsity_of(request, decoder, patterns, seconds)
        return pb.GetSparsityResponse(pattern=message(pattern), nanoseconds=int(pattern.seconds * 1e9))

    def get_statistics(request: pb.GetStatisticsRequest, _: float) -> pb.GetStatisticsResponse:
        function = registry.get(request.function).reference if request.function else ""
        found = statistics.messages(function)
        allowed = current().functions
        if allowed is not None:
            found = [one for one in found if allowed.permits(one.function)]
        return pb.GetStatisticsResponse(statistics=found)

    found: dict[str, Callable[[Call], Handler]] = {
        "ListFunctions": Endpoint(pb.ListFunctionsRequest, list_functions, gate, looking_up),
        "DescribeFunction": Endpoint(pb.DescribeFunctionRequest, describe_function, gate, looking_up),
        "GetStatistics": Endpoint(pb.GetStatisticsRequest, get_statistics, gate, looking_up),
        "GetSparsity": Endpoint(pb.GetSparsityRequest, get_sparsity, gate, computing),
        "Explain": Endpoint(pb.ExplainRequest, explainer.explain, gate, computing),
    }
    return {f"/{SERVICE.full_name}/{name}": make for name, make in found.items()}


def _visible(registry: Registry) -> list[Function]:
    """The latest version of every function that the caller may use, by name."""
    allowed = current().functions
    if allowed is None:
        return registry.latest()
    latest: dict[str, Function] = {}
    for function in registry.all():
        if allowed.permits(function.reference):
            other = latest.get(function.name)
            if other is None or other.version < function.version:
                latest[function.name] = function
    return [latest[name] for name in sorted(latest)]


def describe(function: Function, documentation: bool) -> function_pb2.Function:
    """The function as the catalogue publishes it."""
    signature = function.signature
    return function_pb2.Function(
        name=function.name,
        version=function.version,
        summary=_summary(function.documentation),
        documentation=function.documentation if documentation else "",
        source=function.source,
        signature=function_pb2.Signature(
            inputs=[_spec(spec) for spec in signature.inputs], outputs=[_spec(spec) for spec in signature.outputs or ()]
        ),
        operators=function.operators(),
        engine=ENGINES[function.engine],
    )


def _summary(documentation: str) -> str:
    paragraph = " ".join(documentation.split("\n\n", maxsplit=1)[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + stop.strip()


def _spec(spec: TensorSpec) -> function_pb2.TensorSpec:
    return function_pb2.TensorSpec(
        name=spec.name,
        dtypes=[NUMBERS[dtype] for dtype in spec.dtypes],
        shape=[_dimension(dim) for dim in spec.shape or ()],
        any_shape=spec.shape is None,
        differentiable=spec.differentiable,
        domain=_domain(spec),
    )


def _domain(spec: TensorSpec) -> function_pb2.Domain | None:
    if spec.domain is None or callable(spec.domain):
        return None
    return function_pb2.Domain(lowest=spec.domain[0], highest=spec.domain[1])


def _dimension(dim: Dim) -> function_pb2.Dimension:
    if dim is None:
        return function_pb2.Dimension(any=True)
    return function_pb2.Dimension(size=dim) if isinstance(dim, int) else function_pb2.Dimension(symbol=dim)
