"""Explain: a request → how it would be answered, and what that costs."""

import functools
import time
from collections.abc import Mapping

from nablad.errors import InvalidOption
from nablad.v1 import catalog_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.explanation import Cost, accumulation, cost_of
from nablad_server.derivatives.operators import result_bytes
from nablad_server.derivatives.patterns import Patterns
from nablad_server.derivatives.query import Query
from nablad_server.serving.decode import Decoder, Kind
from nablad_server.serving.limits import OWNER
from nablad_server.serving.sparsity import message, when_known


class Explainer:
    """Explains requests. Blocks while programs are compiled."""

    def __init__(self, decoder: Decoder, patterns: Patterns, cache: ProgramCache, kinds: Mapping[str, Kind]) -> None:
        """`kinds`: the operators, by the name of their RPC."""
        self._decoder = decoder
        self._patterns = patterns
        self._cache = cache
        self._kinds = {kind.request.DESCRIPTOR.full_name: kind for kind in kinds.values()}

    def explain(self, request: pb.ExplainRequest, seconds: float) -> pb.ExplainResponse:
        """The explanation.

        Raises:
            DeadlineExceeded: a program is not compiled after so many seconds.
            NabladError: what the request itself would have been answered with.
        """
        finish_by = time.monotonic() + seconds
        field = request.WhichOneof("request")
        if field is None:
            raise InvalidOption("there is nothing to explain; set one of the requests", field="request")
        asked = getattr(request, field)
        decode = functools.partial(self._kinds[asked.DESCRIPTOR.full_name].decode, self._decoder, asked)
        query = when_known(decode, self._patterns, seconds).query
        program = self._cache.wait(query, 1, finish_by - time.monotonic(), OWNER.get())
        function = self._cache.wait(_function_itself(query), 1, finish_by - time.monotonic(), OWNER.get())
        mode, reason = accumulation(query)
        return pb.ExplainResponse(
            function=query.function.reference,
            operator=query.operator,
            mode=mode,
            reason=reason,
            function_cost=_cost(cost_of(function)),
            cost=_cost(cost_of(program)),
            result_bytes=result_bytes(query),
            programs=[
                pb.ProgramInfo(
                    points=ready.bucket,
                    strategy=ready.strategy,
                    cost=_cost(cost_of(ready)),
                    compile_nanoseconds=int(ready.compile_seconds * 1e9),
                )
                for _, ready in sorted(self._cache.buckets(query).items())
            ],
            sparsity=message(query.pattern, indices=False) if query.sparse and query.pattern else None,
            nonzeros=query.pattern.nonzeros if query.sparse and query.pattern else 0,
        )


def _function_itself(query: Query) -> Query:
    """The query for the outputs that are differentiated, alone."""
    shared = query.shared[: len(query.inputs)]
    return Query(query.function, function_pb2.OPERATOR_EVALUATE, query.inputs, query.outputs, shared=shared)


def _cost(cost: Cost) -> pb.Cost:
    return pb.Cost(
        flops=cost.flops,
        accessed_bytes=cost.accessed_bytes,
        nanoseconds=int(cost.seconds * 1e9),
        memory_bytes=cost.memory_bytes,
    )
