"""Requests for a sparsity pattern by itself."""

from nablad.errors import Internal, InvalidOption
from nablad.v1 import catalog_pb2
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.derivatives.pattern import Pattern
from nablad_server.derivatives.patterns import Patterns
from nablad_server.serving.decode import Decoded, Decoder
from nablad_server.serving.sparsity import when_known


def sparsity_of(
    request: catalog_pb2.GetSparsityRequest, decoder: Decoder, patterns: Patterns, timeout: float
) -> Pattern:
    """The pattern of the matrix that a request is about. Blocks until it is found.

    Raises:
        DeadlineExceeded: it is not after `timeout` seconds.
        NabladError: what the request itself would be answered with.
    """

    def read() -> Decoded:
        match request.WhichOneof("request"):
            case "jacobian":
                jacobian = pb.JacobianRequest()
                jacobian.CopyFrom(request.jacobian)
                jacobian.structure = pb.JACOBIAN_STRUCTURE_SPARSE
                return decoder.jacobian(jacobian)
            case "hessian":
                hessian = pb.HessianRequest()
                hessian.CopyFrom(request.hessian)
                hessian.structure = pb.HESSIAN_STRUCTURE_SPARSE
                return decoder.hessian(hessian)
            case _:
                raise InvalidOption("no matrix is named; set jacobian or hessian", field="request")

    query = when_known(read, patterns, timeout).query
    if query.pattern is None:
        raise Internal(f"{query} was read without a pattern")
    return query.pattern
