"""The caller that `docker/smoke` needs: one checked gradient, or many checked calls while the server stops."""

import argparse
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
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

CALL_SECONDS = 30.0
"""The deadline of one call; the image promises that calls in flight are answered within 25 s."""

REFUSED_WITHIN_SECONDS = 60.0
"""From the signal, so long may it take until every caller is refused."""

CUT_OFF = ("socket closed", "connection reset", "broken pipe", "recvmsg")
"""What gRPC says of a call whose connection went away under it, as opposed to one that was never accepted."""


def tensor(name: str, x: Array) -> NamedTensor:
    """One float64 input."""
    return NamedTensor(name=name, tensor=Tensor(dtype=DTYPE_FLOAT64, shape=x.shape, data=x.astype("<f8").tobytes()))


def result(tensors: Sequence[NamedTensor]) -> Array:
    """The one result in a response."""
    (only,) = tensors
    return np.frombuffer(only.tensor.data, "<f8").reshape(only.tensor.shape)


def rosenbrock_gradient(x: Array) -> Array:
    """∇ of Σᵢ 100(xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)², by hand."""
    climb = x[1:] - x[:-1] ** 2
    slope = np.zeros_like(x)
    slope[:-1] = -400 * x[:-1] * climb - 2 * (1 - x[:-1])
    slope[1:] += 200 * climb
    return slope


def gradient(stub: DifferentiationServiceStub, x: Array) -> bool:
    """A call that takes a millisecond. Says whether the answer is right."""
    response = stub.Gradient(pb.GradientRequest(function="rosenbrock", inputs=[tensor("x", x)]), timeout=CALL_SECONDS)
    return np.allclose(result(response.gradients), rosenbrock_gradient(x), rtol=1e-12, atol=1e-9)


def curvature(stub: DifferentiationServiceStub, matrix: Array) -> bool:
    """A call that takes hundreds of times longer, so that some are being computed when the server begins to stop.

    ∂²/∂Aᵢⱼ² of ln |det A| is −((A⁻¹)ⱼᵢ)².
    """
    request = pb.HessianRequest(
        function="logdet", inputs=[tensor("A", matrix)], structure=pb.HESSIAN_STRUCTURE_DIAGONAL
    )  # fmt: skip
    response = stub.Hessian(request, timeout=CALL_SECONDS)
    return np.allclose(result(response.diagonals), -(np.linalg.inv(matrix).T ** 2), rtol=1e-9, atol=1e-12)


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
        return self.outcome.startswith("UNAVAILABLE") and not any(text in self.outcome.lower() for text in CUT_OFF)


@dataclass
class Caller:
    """Calls over a connection of its own, one call after the other, until one does not succeed."""

    address: str
    ask: Callable[[DifferentiationServiceStub], bool]
    calls: list[Call] = field(default_factory=list)
    going: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Fills `calls`, and sets `going` once the first few were answered or one failed."""
        # Without a pool of its own, callers in one process would share a connection.
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
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
            return "answered" if self.ask(stub) else "wrong numbers"
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"


def check_gradient(address: str) -> list[str]:
    """One gradient. Returns what is wrong."""
    x = np.array([1.0, 2.0, 3.0])
    with grpc.insecure_channel(address) as channel:
        right = gradient(DifferentiationServiceStub(channel), x)
    print(f"gradient of rosenbrock at {x.tolist()}: {rosenbrock_gradient(x).tolist() if right else 'wrong'}")
    return [] if right else ["the gradient is wrong"]


def check_drain(address: str, callers: int, size: int, signal: Sequence[str]) -> list[str]:
    """Calls all the while, has the server told to stop, and goes on until every caller is refused.

    Returns:
        What was lost: calls begun before the server was told that were not answered, and later ones that were neither
        answered nor refused.
    """
    matrix = np.eye(size) + 0.5 / size
    asks = [functools.partial(gradient, x=np.linspace(-1, 2, 10)), functools.partial(curvature, matrix=matrix)]
    crew = [Caller(address, asks[number % 2]) for number in range(callers)]
    threads = [threading.Thread(target=caller.run, daemon=True) for caller in crew]
    for thread in threads:
        thread.start()
    for caller in crew:
        if not caller.going.wait(CALL_SECONDS):
            return ["a caller had too few answers to begin with"]
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
    last = max(call.ended for call in calls if call.answered)
    print(f"before the signal: {_count(before)}")
    if not during:
        return ["no call was in flight when the signal came"]
    longest = max(call.ended - call.begun for call in during)
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
    drain.add_argument("--size", type=int, default=80, help="rows of the matrix in the heavy calls")
    drain.add_argument("signal", nargs="+", help="the command that tells the server to stop, after --")
    given = parser.parse_args()
    if given.check == "gradient":
        problems = check_gradient(given.address)
    else:
        problems = check_drain(given.address, given.callers, given.size, given.signal)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
