"""Products at a point where a function was linearised → the answers of a Linearize stream."""

from collections.abc import Sequence

from nablad.v1 import differentiation_pb2 as pb
from nablad_server.batching.ticket import Outcome
from nablad_server.derivatives.operators import result_specs
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Results
from nablad_server.serving.layout import RESPONSES, Group, Layout, Part

PRODUCTS = pb.ProductAnswer.DESCRIPTOR.fields_by_name["products"].number


class ProductLayout(Layout):
    """How the answers to one kind of products are written: of what a call would give, the products alone."""

    def __init__(self, query: Query, outputs: Sequence[str]) -> None:
        """`outputs` are the names of the query's outputs."""
        super().__init__(query, False, outputs)

    def _fields(self, query: Query, outputs: Sequence[str]) -> list[Group]:
        *_, named = RESPONSES[query.operator][1].values()
        return [(PRODUCTS, named(query, outputs), result_specs(query)[-1])]

    def write(self, outcome: Outcome) -> tuple[list[Part], int]:
        """The answer's parts but for its id, and how many bytes they are together.

        The vectors of a stack may have been computed as so many points: their products lie in memory just the same.
        """
        results: Results = outcome.result
        return self._written(outcome, results.groups[-1:], 1)
