"""The Entrance: where it is found who calls, and whether that caller may ask for one thing more."""

from collections.abc import Callable, Collection, Sequence

from nablad.errors import NabladError, ResourceExhausted, Unauthenticated
from nablad_server.serving.call import Call
from nablad_server.serving.callers import OPEN, Callers, check_role
from nablad_server.serving.limits import Accounts, Limits


class Entrance:
    """What every call passes when it comes and when it is over. Used in the transport's thread."""

    def __init__(
        self,
        callers: Callers,
        limits: Limits,
        *,
        methods: Collection[str],
        streams: Collection[str],
        calls: int,
        over: Sequence[Callable[[Call], None]] = (),
    ) -> None:
        """The entrance to some methods.

        Args:
            callers: what finds out who calls.
            limits: those of callers that have none of their own.
            methods: all that there are, `/package.Service/Method` each.
            streams: those of them whose calls count as streams.
            calls: so many may be open at once. Those of services that anybody may call are not among them: there are
                at most `limits.calls` of these from one address.
            over: what is told of every call that is over, whether it was let in or not.
        """
        self._callers = callers
        self._accounts = Accounts(limits)
        self._open = frozenset(method for method in methods if method.split("/")[1] in OPEN)
        self._visitors = Accounts(Limits(calls=limits.calls))
        self._streams = frozenset(streams)
        self._calls = calls
        self._inside = 0
        self._over = over

    def admit(self, call: Call) -> NabladError | None:
        """Sets a call's caller and account, and counts it there; or says why it is refused."""
        if call.method in self._open:
            call.caller = caller = self._callers.anybody(call.peer)
            call.account = self._visitors.of(caller.key)
            refused = call.account.enter(stream=False)
            call.counted = refused is None
            return refused
        if self._inside >= self._calls:
            return ResourceExhausted(f"{self._calls} calls are open already; retry later", retry_after=1.0)
        try:
            call.caller = caller = self._callers.of(call.metadata, lambda: call.peer, call.certificate)
            if self._callers.known:
                check_role(caller, call.method)
        except NabladError as error:
            return error
        call.account = account = self._accounts.of(caller.key, caller.limits)
        call.stream = call.method in self._streams
        refused = account.enter(stream=call.stream)
        if refused is None:
            call.counted = True
            self._inside += 1
        return refused

    def left(self, call: Call) -> None:
        """A call is over, whether it was let in or not."""
        for tell in self._over:
            tell(call)
        if call.counted:
            call.counted = False
            call.account.leave(stream=call.stream)
            if call.method not in self._open:
                self._inside -= 1

    def renew(self, call: Call) -> NabladError | None:
        """Has a call that is under way know what its caller may do now; or says why it may not have it any more."""
        if call.method in self._open:
            return None
        found = self._callers.renewed(call.caller)
        if found is None:
            return Unauthenticated("what this caller showed to be let in is not valid any more")
        try:
            check_role(found, call.method)
        except NabladError as error:
            return error
        call.caller = found
        return None
