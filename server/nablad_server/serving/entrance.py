"""The Entrance: where it is found who calls, and whether that caller may ask for one thing more."""

from nablad.errors import NabladError, PermissionDenied, Unauthenticated
from nablad_server.serving.caller import EVALUATE, Caller
from nablad_server.serving.callers import Callers, check_role
from nablad_server.serving.limits import Accounts
from nablad_server.serving.transport import Call


class Entrance:
    """What every call of the fast transport passes. Used in its thread."""

    def __init__(self, callers: Callers, accounts: Accounts, streams: frozenset[str]) -> None:
        """`streams` are the full names of the methods whose calls count as streams."""
        self._callers = callers
        self._accounts = accounts
        self._streams = streams

    def admit(self, name: str, call: Call) -> NabladError | None:
        """Sets a call's caller and account, and counts it there; or says why it is refused."""
        try:
            call.caller = caller = self._callers.of(call.metadata, lambda: call.peer, call.certificate)
            if self._callers.known:
                check_role(caller, name)
        except NabladError as error:
            return error
        call.account = account = self._accounts.of(caller.key, caller.limits)
        call.stream = name in self._streams
        return account.enter(stream=call.stream)

    def renewed(self, caller: Caller) -> Caller | NabladError:
        """The caller of an open call with what it may do now; or why it may not have that call any more."""
        found = self._callers.renewed(caller)
        if found is None:
            return Unauthenticated("what this caller showed to be let in is not valid any more")
        if EVALUATE not in found.roles:  # which all methods here need
            return PermissionDenied("the role evaluate was taken from this caller")
        return found
