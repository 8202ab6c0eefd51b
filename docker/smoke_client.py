"""The caller that `docker/smoke` needs: one checked gradient, or many checked calls while the server stops."""

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt

from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.differentiation_pb2_grpc import DifferentiationServiceStub
from nablad.v1.tensor_pb2 import DTYPE_FLOAT64, NamedTensor, Tensor

Array = npt.NDArray[np.float64]

ANSWERS_BEFORE_SIGNAL = 3
"""So many answers every caller must have had before the server is told to stop."""

CALL_SECONDS = 60.0
"""The deadline of one call. A busy machine may need long for the first ones, which compile programs."""

REFUSED_WITHIN_SECONDS = 60.0
"""From the signal, so long may it take until every caller is refused."""

OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
"""Without a pool of its own, callers in one process would share a connection."""

CUT_OFF = ("socket closed", "connection reset", "broken pipe", "recvmsg")
"""What gRPC says of a call whose connection went away under it, as opposed to one that was never accepted."""


def rosenbrock_gradient(x: Array) -> Array:
    """∇ of Σᵢ 100(xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)² by hand, for each row of x."""
    head, tail = x[..., :-1], x[..., 1:]
    climb = tail - head**2
    slope = np.zeros_like(x)
    slope[..., :-1] = -400 * head * climb - 2 * (1 - head)
    slope[..., 1:] += 200 * climb
    return slope


def gradient_is_right(stub: DifferentiationServiceStub, x: Array) -> bool:
    """Asks for the gradient at one point, or at each row, and compares it with the formula."""
    tensor = Tensor(dtype=DTYPE_FLOAT64, shape=x.shape, data=x.astype("<f8").tobytes())
    inputs = [NamedTensor(name="x", tensor=tensor, batched=x.ndim == 2)]
    response = stub.Gradient(pb.GradientRequest(function="rosenbrock", inputs=inputs), timeout=CALL_SECONDS)
    (answer,) = response.gradients
    slope = np.frombuffer(answer.tensor.data, "<f8").reshape(answer.tensor.shape)
    return slope.shape == x.shape and np.allclose(slope, rosenbrock_gradient(x), rtol=1e-12, atol=1e-9)


@dataclass(frozen=True)
class Call:
    """One call and how it ended. Times are those of time.monotonic()."""

    begun: float
    ended: float
    outcome: str

    @property
    def answered(self) -> bool:
        """It came back with the right numbers."""
        return self.outcome == "answered"

    @property
    def refused(self) -> bool:
        """The server did not accept it, and said so."""
        code, _, details = self.outcome.lower().partition(": ")
        never_connected = details.startswith("failed to connect")
        return code == "unavailable" and (never_connected or not any(text in details for text in CUT_OFF))


@dataclass
class Caller:
    """Calls over a connection of its own, one call after the other, until one does not succeed."""

    address: str
    x: Array
    calls: list[Call] = field(default_factory=list)
    going: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Fills `calls`, and sets `going` once the first few were answered or one failed."""
        with grpc.insecure_channel(self.address, options=OPTIONS) as channel:
            stub = DifferentiationServiceStub(channel)
            while not self.calls or self.calls[-1].answered:
                begun = time.monotonic()
                outcome = self._outcome(stub)
                self.calls.append(Call(begun, time.monotonic(), outcome))
                if len(self.calls) >= ANSWERS_BEFORE_SIGNAL:
                    self.going.set()
        self.going.set()

    def _outcome(self, stub: DifferentiationServiceStub) -> str:
        try:
            return "answered" if gradient_is_right(stub, self.x) else "wrong numbers"
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"


def check_gradient(address: str) -> list[str]:
    """One gradient. Returns what is wrong."""
    x = np.array([1.0, 2.0, 3.0])
    with grpc.insecure_channel(address) as channel:
        right = gradient_is_right(DifferentiationServiceStub(channel), x)
    print(f"gradient of rosenbrock at {x.tolist()}: {rosenbrock_gradient(x).tolist() if right else 'wrong'}")
    return [] if right else ["the gradient is wrong"]


def check_drain(address: str, callers: int, points: int, signal: Sequence[str]) -> list[str]:
    """Calls all the while, has the server told to stop, and goes on until every caller is refused.

    Returns:
        What was lost: calls begun before the server was told that were not answered, and later ones that were neither
        answered nor refused.
    """
    # Half of the callers ask small questions, which take a millisecond. The others ask large ones, so that some are
    # being read, computed or written when the server begins to stop.
    small, large = np.linspace(-1, 2, 10), np.linspace(-1, 2, 10 * points).reshape(points, 10)
    crew = [Caller(address, small if number % 2 else large) for number in range(callers)]
    threads = [threading.Thread(target=caller.run, daemon=True) for caller in crew]
    for thread in threads:
        thread.start()
    for caller in crew:
        if not caller.going.wait(CALL_SECONDS):
            return ["a caller had too few answers to begin with"]
    early = [call.outcome for caller in crew for call in caller.calls if not call.answered]
    if early:
        return [f"lost before the server was told to stop: {outcome}" for outcome in early]
    subprocess.run(signal, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - the command that docker/smoke gave
    signalled = time.monotonic()
    for thread in threads:
        thread.join(max(0.0, signalled + REFUSED_WITHIN_SECONDS - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        return [f"the server still answers {REFUSED_WITHIN_SECONDS:.0f} s after it was told to stop"]
    return _verdict([call for caller in crew for call in caller.calls], signalled)


def _verdict(calls: Sequence[Call], signalled: float) -> list[str]:
    before = [call for call in calls if call.ended <= signalled]
    during = [call for call in calls if call.begun <= signalled < call.ended]
    after = [call for call in calls if call.begun > signalled]
    if not during:
        return ["no call was in flight when the signal came"]
    longest = max(call.ended - call.begun for call in during)
    last = max((call.ended for call in calls if call.answered), default=signalled)
    print(f"before the signal: {_count(before)}")
    print(f"in flight when it came: {_count(during)}; the longest took {longest:.2f} s")
    print(f"begun after it: {_count(after)}; the last answer {last - signalled:.2f} s after the signal")
    lost = [call for call in (*before, *during) if not call.answered]
    lost += [call for call in after if not (call.answered or call.refused)]
    return [f"begun {call.begun - signalled:+.3f} s from the signal, lost after {call.ended - call.begun:.3f} s: "
            f"{call.outcome}" for call in lost]  # fmt: skip


def _count(calls: Iterable[Call]) -> str:
    outcomes = ["answered" if call.answered else "refused" if call.refused else "lost" for call in calls]
    return ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("answered", "refused", "lost"))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="HOST:PORT of the server")
    checks = parser.add_subparsers(dest="check", required=True)
    checks.add_parser("gradient", help="one gradient, compared with the formula")
    drain = checks.add_parser("drain", help="calls in flight while the server is told to stop")
    drain.add_argument("--callers", type=int, default=8)
    drain.add_argument("--points", type=int, default=50_000, help="points in each large call")
    drain.add_argument("signal", nargs="+", help="the command that tells the server to stop, after --")
    given = parser.parse_args()
    if given.check == "gradient":
        problems = check_gradient(given.address)
    else:
        problems = check_drain(given.address, given.callers, given.points, given.signal)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
