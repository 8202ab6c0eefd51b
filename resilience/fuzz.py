"""Sends a server messages that no client would, and checks that nothing comes of them but refusals and answers."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message

from resilience.corpus import Rpc, rpcs
from resilience.mutation import broken, change_field
from resilience.questions import GRADIENT, is_right, question
from resilience.verdict import DEFECTS, MARKED, Verdict, marked

DEADLINE_SECONDS = 60.0
"""A call that has no answer then hangs: compilations that wait take seconds, nothing takes a minute."""
IN_FLIGHT = 48
CHANNELS = 4
BATCH = 500
"""Messages between two questions whose answers are known, beside those asked in between."""
SLOW = {"CheckGradient": 0.15, "InspectLayers": 0.15, "SummarizeCurvature": 0.15, "Reload": 0.02, "GetSparsity": 0.3}
"""How much less often than others an RPC is called whose calls take long even when they are right."""
LONG = 0.2
"""How often a Pipeline is sent many messages, good ones among them."""
RESPONSES = 200
"""Messages of one stream that are read before the caller goes away."""
UNSENT = "Internal error from Core"
"""What grpc.aio, in this process, says when a stream ended before it had sent everything; no server says it."""
OPEN = "/grpc.health.v1.Health/"
"""Anybody may ask for this."""


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation: the RPC and the messages that the caller sends."""

    rpc: Rpc
    frames: tuple[bytes, ...]

    def write(self, directory: Path, number: int, why: str) -> Path:
        """Saves it for `fuzz --replay`."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.rpc.path.rpartition('/')[2].lower()}-{number}.json"
        content = {"rpc": self.rpc.path, "frames": [frame.hex() for frame in self.frames], "why": why}
        path.write_text(json.dumps(content, indent=1))
        return path


def read_case(path: Path) -> Case:
    """A case that `Case.write` saved. Raises KeyError or ValueError if the file is none."""
    content = json.loads(path.read_text())
    by_path = {rpc.path: rpc for rpc in rpcs()}
    return Case(by_path[content["rpc"]], tuple(bytes.fromhex(frame) for frame in content["frames"]))


def cases(chance: random.Random, known: Sequence[Rpc]) -> Iterator[Case]:
    """Endless cases, each RPC in its turn."""
    weights = [SLOW.get(rpc.path.rpartition("/")[2], 1.0) for rpc in known]
    while True:
        rpc = chance.choices(known, weights)[0]
        conversation = chance.choice(rpc.valid)
        if not rpc.sends:
            yield Case(rpc, (broken(conversation[0], chance),))
            continue
        if rpc.path.endswith("/Pipeline") and chance.random() < LONG:
            yield Case(rpc, _long(conversation, chance))
            continue
        at = chance.randrange(len(conversation))
        frames = [message.SerializeToString() for message in conversation]
        frames[at] = broken(conversation[at], chance)
        if chance.random() < 0.2:
            frames.append(broken(chance.choice(conversation), chance))
        yield Case(rpc, tuple(frames))


def _long(conversation: Sequence[Message], chance: random.Random) -> tuple[bytes, ...]:
    """Many messages of one stream: good ones whose answers are known, with broken ones of either kind among them."""
    frames = []
    for identity in MARKED[: chance.randrange(10, 60)]:
        frames.append(marked(identity).SerializeToString())
        if chance.random() < 0.3:
            message: Any = type(conversation[0])()
            message.CopyFrom(chance.choice(conversation))
            for _ in range(chance.choice((1, 3))):
                change_field(message, chance)
            frames.append(message.SerializeToString())
    if chance.random() < 0.3:
        frames.append(broken(chance.choice(conversation), chance))
    return tuple(frames)


@dataclass(slots=True)
class Findings:
    """What came of it.

    Attributes:
        statuses: how often an RPC ended with a status.
        violations: what must not happen, each with where its case was saved.
        checked: questions with a known answer that were asked.
    """

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    messages: int = 0
    checked: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Guise:
    """As whom the fuzzer calls.

    Attributes:
        credentials: of TLS; None for plaintext.
        metadata: what every call bears, such as a token.
        functions: those that answers may be about; None for all.
        known: whether the server knows this caller; if not, it must not be answered, whatever it says.
    """

    credentials: grpc.ChannelCredentials | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    functions: frozenset[str] | None = None
    known: bool = True

    def channel(self, address: str) -> grpc.aio.Channel:
        """A connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        if self.credentials is None:
            return grpc.aio.insecure_channel(address, options)
        return grpc.aio.secure_channel(address, self.credentials, options)


PLAIN = Guise()


class Fuzzer:
    """Sends cases over a few connections, many at a time."""

    def __init__(self, address: str, findings: Findings, reproducers: Path, guise: Guise = PLAIN) -> None:
        """Cases that break something are saved in `reproducers`."""
        self._address, self._findings, self._reproducers = address, findings, reproducers
        self._guise = guise
        self._channels: list[grpc.aio.Channel] = []

    async def run(self, messages: int, seed: int) -> None:
        """Sends about so many messages."""
        chance, points = random.Random(seed), np.random.default_rng(seed)  # noqa: S311 - repeatable, not secret
        source = cases(chance, rpcs())
        async with AsyncExitStack() as stack:
            for _ in range(CHANNELS):
                self._channels.append(await stack.enter_async_context(self._guise.channel(self._address)))
            until = self._findings.messages + messages
            while self._findings.messages < until:
                batch = min(BATCH, until - self._findings.messages)
                await self._batch(source, batch, points)
                await self._check(points)

    async def replay(self, case: Case) -> None:
        """Sends one case."""
        async with self._guise.channel(self._address) as channel:
            self._channels.append(channel)
            await self.send(case)
            await self._check(np.random.default_rng(0))

    async def _batch(self, source: Iterator[Case], messages: int, points: np.random.Generator) -> None:
        left = messages

        async def work() -> None:
            nonlocal left
            while left > 0:
                case = next(source)
                left -= len(case.frames)
                self._findings.messages += len(case.frames)
                await self.send(case)
                if points.random() < 0.02:
                    await self._check(points)

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    async def _check(self, points: np.random.Generator) -> None:
        """A good question among the bad ones, by the right answer to it."""
        if not self._guise.known:
            return
        x = points.uniform(-2, 2, 3)
        call: Any = self._channel().unary_unary(GRADIENT)
        self._findings.checked += 1
        for _ in range(50):
            try:
                if not is_right(x, await call(question(x), timeout=DEADLINE_SECONDS, metadata=self._guise.metadata)):
                    self._findings.violations.append(f"a wrong answer to the gradient of rosenbrock at {x}")
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # told to come back: so do callers
                    await asyncio.sleep(0.1)
                    continue
                self._findings.violations.append(f"a good call among bad ones ended with {error.code().name}: "
                                                 f"{error.details()}")  # fmt: skip
            return
        self._findings.violations.append("a good call among bad ones was refused for 5 s")

    def _channel(self) -> grpc.aio.Channel:
        return self._channels[self._findings.messages % len(self._channels)]

    async def send(self, case: Case) -> None:
        """Sends one case and judges what comes back."""
        verdict = Verdict(case.rpc, case.frames, self._guise.functions)
        answers = 0
        try:
            async for response in self._responses(case):
                answers += 1
                for wrong in verdict.answer(response):
                    self._violation(case, wrong)
            code, details = grpc.StatusCode.OK, ""
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        for wrong in verdict.end(code, whole=answers < RESPONSES):
            self._violation(case, wrong)
        name = case.rpc.path.rpartition("/")[2]
        if details == UNSENT:
            self._findings.statuses[name, "ended before all was sent"] += 1
            return
        self._findings.statuses[name, code.name] += 1
        if code in DEFECTS or code is grpc.StatusCode.DEADLINE_EXCEEDED or code is grpc.StatusCode.UNAVAILABLE:
            self._violation(case, f"{name} ended with {code.name}: {details}")
        refused = code is grpc.StatusCode.UNAUTHENTICATED and not answers
        if not (self._guise.known or refused or case.rpc.path.startswith(OPEN)):
            self._violation(case, f"{name} of nobody known ended with {code.name} after {answers} answers")

    def _violation(self, case: Case, why: str) -> None:
        number = len(self._findings.violations)
        where = f" ({case.write(self._reproducers, number, why)})" if number < 50 else ""
        self._findings.violations.append(why + where)

    async def _responses(self, case: Case) -> AsyncIterator[bytes]:
        """What the server sends, up to a limit."""
        rpc = case.rpc
        channel: Any = self._channel()  # its types know no methods on bytes
        given: dict[str, Any] = {"timeout": DEADLINE_SECONDS, "metadata": self._guise.metadata}
        if not rpc.receives:
            yield await channel.unary_unary(rpc.path)(case.frames[0], **given)
            return
        if rpc.sends:
            call = channel.stream_stream(rpc.path)(_each(case.frames), **given)
        else:
            call = channel.unary_stream(rpc.path)(case.frames[0], **given)
        # Watch never ends by itself.
        limit = 1 if rpc.path.endswith("/Watch") else RESPONSES
        async for response in call:
            yield response
            limit -= 1
            if not limit:
                call.cancel()
                return


async def _each(frames: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame


def fuzz(address: str, messages: int, seed: int, reproducers: Path, guise: Guise = PLAIN) -> Findings:
    """Sends about so many messages to a server; the same ones for the same seed, in an order that may differ."""
    findings, started = Findings(), time.perf_counter()
    asyncio.run(Fuzzer(address, findings, reproducers, guise).run(messages, seed))
    findings.seconds = time.perf_counter() - started
    return findings


def replay(address: str, case: Case, reproducers: Path, guise: Guise = PLAIN) -> Findings:
    """Sends one case again."""
    findings = Findings(messages=len(case.frames))
    asyncio.run(Fuzzer(address, findings, reproducers, guise).replay(case))
    return findings
