"""A Recipe: what a program is compiled from."""

from typing import Protocol

from nablad.v1 import function_pb2
from nablad_server.functions.function import Function
from nablad_server.functions.signature import ArraySpec


class Recipe(Protocol):
    """Says everything that decides which program is compiled: a Query, or a part of one. Hashable.

    Attributes:
        function: whose derivative it is.
        operator: which derivative.
        inputs: shape and dtype of every input leaf of the function, for one point: they decide the precision.
        arrays: shape and dtype of every array that the program takes, for one point.
        shared: for every array: one for all points instead of one for each.
        argument_bytes: the bytes of the arrays that each point has of its own.
        wide: whether the program runs in 64-bit mode.
    """

    @property
    def function(self) -> Function: ...  # noqa: D102 - described above
    @property
    def operator(self) -> function_pb2.Operator.ValueType: ...  # noqa: D102 - described above
    @property
    def inputs(self) -> tuple[ArraySpec, ...]: ...  # noqa: D102 - described above
    @property
    def arrays(self) -> tuple[ArraySpec, ...]: ...  # noqa: D102 - described above
    @property
    def shared(self) -> tuple[bool, ...]: ...  # noqa: D102 - described above
    @property
    def argument_bytes(self) -> int: ...  # noqa: D102 - described above
    @property
    def wide(self) -> bool: ...  # noqa: D102 - described above
    def __hash__(self) -> int: ...
