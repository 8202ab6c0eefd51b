"""Messages generated from the protocol's own description: every field of every request, whatever its value."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilience.corpus import Rpc, rpcs
from resilience.fuzz import Case, replay
from servers import ServerProcess

RPCS = {rpc.path.rpartition("/")[2]: rpc for rpc in rpcs()}
NAMES = st.sampled_from(["rosenbrock", "x", "value", "matvec", ""]) | st.text(max_size=5)
NUMBERS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(0, 4) | st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 4) | st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 4) | st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def values(field: Any, depth: int) -> st.SearchStrategy[Any]:
    """One value of a field."""
    if field.message_type is not None:
        return messages(GetMessageClass(field.message_type), depth)
    if field.enum_type is not None:
        return st.sampled_from([*field.enum_type.values_by_number, 99])
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=24) if field.type == FieldDescriptor.TYPE_BYTES else NAMES
    return NUMBERS[field.cpp_type]


def messages(kind: type[Message], depth: int) -> st.SearchStrategy[Message]:
    """Messages of a kind, nested so deep at most."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in kind.DESCRIPTOR.fields:
        inner: Any = field.message_type
        if inner is not None and (depth == 0 or inner.GetOptions().map_entry):
            continue
        one = values(field, depth - 1)
        fields[field.name] = st.lists(one, max_size=3) if field.is_repeated else one
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: kind(**given))


@st.composite
def conversations(draw: st.DrawFn, rpc: Rpc) -> Case:
    """What a caller sends: made up, or a valid message with made-up fields merged into it."""
    frames = []
    for valid in draw(st.sampled_from(rpc.valid)):
        made = draw(messages(rpc.request, 4))
        if draw(st.booleans()):
            whole: Any = type(valid)()
            whole.CopyFrom(valid)
            whole.MergeFrom(made)
            made = whole
        frames.append(made.SerializeToString())
    return Case(rpc, tuple(frames))


@pytest.mark.parametrize("name", RPCS)
def test_whatever_is_asked_is_answered_or_refused(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    directory: Path = tmp_path_factory.mktemp(name)

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(conversations(RPCS[name]))
    def check(case: Case) -> None:
        assert replay(server.address, case, directory).violations == []

    check()
