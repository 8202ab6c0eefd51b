"""Sends a server messages that no client would, and checks that nothing comes of them but refusals and answers."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from resilience.corpus import Rpc, rpcs
from resilience.mutation import broken, parsed
from resilience.questions import GRADIENT, is_right, question

DEADLINE_SECONDS = 60.0
"""A call that has no answer then hangs: compilations that wait take seconds, nothing takes a minute."""
IN_FLIGHT = 48
CHANNELS = 4
BATCH = 500
"""Messages between two questions whose answers are known, beside those asked in between."""
SLOW = {"CheckGradient": 0.15, "InspectLayers": 0.15, "SummarizeCurvature": 0.15, "Reload": 0.02, "GetSparsity": 0.3}
"""How much less often than others an RPC is called whose calls take long even when they are right."""
RESPONSES = 200
"""Messages of one stream that are read before the caller goes away."""
UNSENT = "Internal error from Core"
"""What grpc.aio, in this process, says when a stream ended before it had sent everything; no server says it."""
DEFECTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})


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


def cases(chance: random.Random, known: Sequence[Rpc]) -> "Any":
    """Endless cases, each RPC in its turn."""
    weights = [SLOW.get(rpc.path.rpartition("/")[2], 1.0) for rpc in known]
    while True:
        rpc = chance.choices(known, weights)[0]
        conversation = chance.choice(rpc.valid)
        if not rpc.sends:
            yield Case(rpc, (broken(conversation[0], chance),))
            continue
        at = chance.randrange(len(conversation))
        frames = [message.SerializeToString() for message in conversation]
        frames[at] = broken(conversation[at], chance)
        if chance.random() < 0.2:
            frames.append(broken(chance.choice(conversation), chance))
        yield Case(rpc, tuple(frames))


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


def _asked(case: Case) -> set[int] | None:
    """The ids that the frames of a Pipeline or Linearize stream ask for; None for other RPCs."""
    name = case.rpc.path.rpartition("/")[2]
    if name not in ("Pipeline", "Linearize"):
        return None
    messages = [parsed(case.rpc.request, frame) for frame in case.frames]
    if None in messages:
        return None  # the server reads a frame from its beginning, and answers what stands before the fault
    return {item.id for message in messages for item in (
        message.operations if name == "Pipeline" else message.products
    )}  # fmt: skip


class Fuzzer:
    """Sends cases over a few connections, many at a time."""

    def __init__(self, address: str, findings: Findings, reproducers: Path) -> None:
        """Cases that break something are saved in `reproducers`."""
        self._address, self._findings, self._reproducers = address, findings, reproducers
        self._channels: list[grpc.aio.Channel] = []

    async def run(self, messages: int, seed: int) -> None:
        """Sends about so many messages."""
        chance, points = random.Random(seed), np.random.default_rng(seed)  # noqa: S311 - repeatable, not secret
        source = cases(chance, rpcs())
        async with AsyncExitStack() as stack:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
            for _ in range(CHANNELS):
                channel = grpc.aio.insecure_channel(self._address, options)
                self._channels.append(await stack.enter_async_context(channel))
            until = self._findings.messages + messages
            while self._findings.messages < until:
                batch = min(BATCH, until - self._findings.messages)
                await self._batch(source, batch, points)
                await self._check(points)

    async def replay(self, case: Case) -> None:
        """Sends one case."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            self._channels.append(channel)
            await self.send(case)
            await self._check(np.random.default_rng(0))

    async def _batch(self, source: Any, messages: int, points: np.random.Generator) -> None:
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
        x = points.uniform(-2, 2, 3)
        call: Any = self._channel().unary_unary(GRADIENT)
        self._findings.checked += 1
        for _ in range(50):
            try:
                if not is_right(x, await call(question(x), timeout=DEADLINE_SECONDS)):
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
        asked = _asked(case)
        try:
            async for response in self._responses(case):
                self._judge(case, response, asked)
            code, details = grpc.StatusCode.OK, ""
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        name = case.rpc.path.rpartition("/")[2]
        if details == UNSENT:
            self._findings.statuses[name, "ended before all was sent"] += 1
            return
        self._findings.statuses[name, code.name] += 1
        if code in DEFECTS or code is grpc.StatusCode.DEADLINE_EXCEEDED or code is grpc.StatusCode.UNAVAILABLE:
            self._violation(case, f"{name} ended with {code.name}: {details}")

    def _judge(self, case: Case, response: bytes, asked: set[int] | None) -> None:
        message = parsed(case.rpc.response, response)
        if message is None:
            self._violation(case, f"{case.rpc.path} answered with what is no {case.rpc.response.__name__}")
        elif asked is not None:
            for answer in message.answers:
                if answer.id not in asked:
                    self._violation(case, f"{case.rpc.path} answered {answer.id}, which nobody asked")
                code = answer.error.code if answer.HasField("error") else 0
                if code in {defect.value[0] for defect in DEFECTS}:
                    self._violation(case, f"{case.rpc.path} answered with {code}: {answer.error.message}")

    def _violation(self, case: Case, why: str) -> None:
        number = len(self._findings.violations)
        where = f" ({case.write(self._reproducers, number, why)})" if number < 50 else ""
        self._findings.violations.append(why + where)

    async def _responses(self, case: Case) -> AsyncIterator[bytes]:
        """What the server sends, up to a limit."""
        rpc = case.rpc
        channel: Any = self._channel()  # its types know no methods on bytes
        if not rpc.receives:
            yield await channel.unary_unary(rpc.path)(case.frames[0], timeout=DEADLINE_SECONDS)
            return
        if rpc.sends:
            call = channel.stream_stream(rpc.path)(_each(case.frames), timeout=DEADLINE_SECONDS)
        else:
            call = channel.unary_stream(rpc.path)(case.frames[0], timeout=DEADLINE_SECONDS)
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


def fuzz(address: str, messages: int, seed: int, reproducers: Path) -> Findings:
    """Sends about so many messages to a server; the same ones for the same seed, in an order that may differ."""
    findings, started = Findings(), time.perf_counter()
    asyncio.run(Fuzzer(address, findings, reproducers).run(messages, seed))
    findings.seconds = time.perf_counter() - started
    return findings


def replay(address: str, case: Case, reproducers: Path) -> Findings:
    """Sends one case again."""
    findings = Findings(messages=len(case.frames))
    asyncio.run(Fuzzer(address, findings, reproducers).replay(case))
    return findings
