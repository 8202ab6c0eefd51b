"""How the calls of a pipeline become operations: by the plan of their kind where there is one, else in full."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nablad._calls import Operator
from nablad._packing import Group, Settable, Single
from nablad._plans import Key, Plan, Plans, key_of
from nablad.results import FunctionInfo

MAX_GROUPS = 1024
"""Groups kept by one pipeline; beyond that all are made anew."""


class Question(NamedTuple):
    """A call that is not yet an operation: what is asked of which function."""

    operator: Operator[Any]
    function: str
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    vector: Any
    options: Mapping[str, Any]


class Intake:
    """Makes operations of calls, and remembers how."""

    def __init__(self, plans: Plans) -> None:
        self.plans = plans
        self._groups: dict[tuple[Key | None, float | None], Group] = {}

    def find(self, key: Key | None, timeout: float | None) -> Group | None:
        """The group that takes in calls of a kind, if there is one."""
        return self._groups.get((key, timeout))

    def begin(
        self, info: FunctionInfo, question: Question, timeout: float | None, now: float, future: Settable
    ) -> tuple[Group, list[bytes]] | Single:
        """A call that needs more than a look into the groups: where it joins with which data, or what it is by itself.

        Raises what making the request raises: InvalidArgument and its kin.
        """
        operator, function, args, named, vector, options = question
        key, arguments = key_of(operator, function, args, named, vector=vector, options=options)
        group = self.find(key, timeout)
        if group is not None:
            return group, group.plan.data(arguments)
        plan = self.plans.find(key)
        if plan is None:
            prepared = operator.prepared(
                info, function, args, named, vector=vector, options=options, patterns=self.plans.patterns
            )
            plan = self.plans.make(key, operator, prepared, arguments)
            if plan is None:
                read, body = prepared.read, [prepared.request.SerializeToString()]
        if plan is not None:
            data = plan.data(arguments)
            if plan.packable and key is not None:
                return self._group(key, plan, timeout), data
            read, body = plan.read, plan.frame(None).around((item,) for item in data)
        operation = Single(function, operator.field, body, read, future)
        if timeout is not None:
            operation.deadline = now + timeout
        return operation

    def forget(self, function: str) -> None:
        """Drops what is known of a function: perhaps the server has a newer version since."""
        self.plans.forget(function)
        self._groups.clear()

    def _group(self, key: Key, plan: Plan[Any], timeout: float | None) -> Group:
        if len(self._groups) >= MAX_GROUPS:
            self._groups.clear()
        group = self._groups[key, timeout] = Group(plan, timeout)
        return group
