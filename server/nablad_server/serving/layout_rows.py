"""What is computed once for a matrix in rows → the first message of its stream."""

from collections.abc import Sequence

from nablad_server.batching.ticket import Outcome
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Results
from nablad_server.serving.layout import Group, Layout, Part

GROUPS = 2
"""Values and gradients: a header has them under the numbers that responses have them under, and nothing else."""


class HeaderLayout(Layout):
    """How the results of Evaluate or Gradient at one point are written into a header."""

    def __init__(self, query: Query, outputs: Sequence[str]) -> None:
        """`outputs` are the names of the query's outputs."""
        super().__init__(query, False, outputs)
        self._places = []

    def _fields(self, query: Query, outputs: Sequence[str]) -> list[Group]:
        return super()._fields(query, outputs)[:GROUPS]

    def write(self, outcome: Outcome) -> tuple[list[Part], int]:
        """The parts of the header's fields, and how many bytes they are together."""
        results: Results = outcome.result
        return self._written(outcome, results.groups[:GROUPS], 1)
