"""Who may do what: tokens, certificates, roles and lists of functions, over real calls."""

import asyncio
import json
import queue
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import nablad
from credentials import Certificates, replace, write_identities
from nablad import aio
from nablad.cli import main
from nablad.errors import FunctionNotFound, NabladError, PermissionDenied, Unauthenticated, from_rpc_error, from_wire
from nablad.tensors import to_tensor
from nablad.v1 import admin_pb2, catalog_pb2, diagnostics_pb2, differentiation_pb2
from nablad.v1.tensor_pb2 import NamedTensor
from nablad_server.serving.identities import read_identities
from nablad_server.serving.limits import Limits
from nablad_server.tokens import token as token_command
from servers import ServerProcess

SERVICES = {
    "evaluate": (differentiation_pb2, "DifferentiationService"),
    "check": (diagnostics_pb2, "DiagnosticsService"),
    "catalogue": (catalog_pb2, "CatalogService"),
    "admin": (admin_pb2, "AdminService"),
}
METHODS = [method for module, name in SERVICES.values() for method in module.DESCRIPTOR.services_by_name[name].methods]
ROLES = {
    "DifferentiationService": {"evaluate"},
    "DiagnosticsService": {"evaluate"},
    "CatalogService": {"catalogue"},
    "AdminService": {"admin"},
}
REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
PEOPLE: list[dict[str, Any]] = [
    {"name": "evaluator", "tokens": ["evaluator-1", "evaluator-2"], "roles": ["evaluate"]},
    {"name": "reader", "tokens": ["reader-1"], "roles": ["catalogue"]},
    {"name": "operator", "tokens": ["operator-1"], "roles": ["admin"]},
    {"name": "everything", "tokens": ["everything-1"], "roles": ["evaluate", "catalogue", "admin"]},
    {
        "name": "guest",
        "tokens": ["guest-1"],
        "roles": ["evaluate", "catalogue"],
        "functions": ["rosenbrock", "exp@1", "si*"],
    },
]


def as_caller(address: str, token: str) -> nablad.Client:
    return nablad.Client(address, token=token, timeout=120)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("identities") / "identities.toml"
    write_identities(path, PEOPLE)
    with ServerProcess("--tokens", path) as process:
        yield process
        assert process.errors() == []
        for token in (token for person in PEOPLE for token in person["tokens"]):
            assert token not in str(process.log)


@pytest.fixture(scope="module")
def guest(served: ServerProcess) -> Iterator[nablad.Client]:
    with as_caller(served.address, "guest-1") as client:
        yield client


@pytest.fixture(scope="module")
def everybody(served: ServerProcess) -> Iterator[nablad.Client]:
    """A client that may do everything."""
    with as_caller(served.address, "everything-1") as client:
        yield client


def bearing(token: str | None) -> list[tuple[str, str]]:
    return [] if token is None else [("authorization", f"Bearer {token}")]


def called(
    channel: grpc.Channel, method: Any, metadata: list[tuple[str, str]], message: bytes = b""
) -> grpc.StatusCode:
    """The status of a call of a method."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            stream: Any = channel.stream_stream(name)
            list(stream(iter([message]), metadata=metadata, timeout=60))
        elif method.server_streaming:
            some: Any = channel.unary_stream(name)
            list(some(message, metadata=metadata, timeout=60))
        else:
            one: Any = channel.unary_unary(name)
            one(message, metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_role_allows_its_services_and_no_others(served: ServerProcess, method: Any) -> None:
    needed = set(ROLES[method.containing_service.name])
    if method.name == "DescribeFunction":  # arguments are bound by what it says
        needed |= {"evaluate"}
    with grpc.insecure_channel(served.address) as channel:
        assert called(channel, method, bearing(None)) == grpc.StatusCode.UNAUTHENTICATED
        for person in PEOPLE:
            code = called(channel, method, bearing(person["tokens"][0]))
            if needed & set(person["roles"]):
                assert code not in REFUSALS
            else:
                assert code == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("path", ["Gradient", "Pipeline", "StreamHessian", "ListFunctions"])
def test_whatever_is_amiss_with_credentials_the_answer_is_the_same(served: ServerProcess, path: str) -> None:
    (method,) = (method for method in METHODS if method.name == path)
    name = f"/{method.containing_service.full_name}/{path}"
    answers = set()
    with grpc.insecure_channel(served.address) as channel:
        for value in (None, "", "Bearer", "Bearer ", "Bearer wrong", "bearer evaluator-", "Bearer evaluator-11",
                      "Basic evaluator-1", "evaluator-1", "Bearer evaluator-1 evaluator-1"):  # fmt: skip
            opened: Any = channel.stream_stream(name)
            with pytest.raises(grpc.RpcError) as refused:
                list(opened(iter([b""]), metadata=[] if value is None else [("authorization", value)], timeout=60))
            error = from_rpc_error(refused.value)
            answers.add((type(error), str(error), error.reason, tuple(error.metadata.items())))
    ((kind, message, reason, _),) = answers
    assert (kind, reason) == (Unauthenticated, "UNAUTHENTICATED")
    assert "Bearer TOKEN" in message
    assert not any(person["name"] in message for person in PEOPLE)


def test_the_scheme_may_be_written_in_any_case(served: ServerProcess) -> None:
    (method,) = (method for method in METHODS if method.name == "ListFunctions")
    with grpc.insecure_channel(served.address) as channel:
        for scheme in ("bearer", "BEARER"):
            assert called(channel, method, [("authorization", f"{scheme} reader-1")]) == grpc.StatusCode.OK


def test_both_clients_send_the_token_with_every_call(served: ServerProcess, everybody: nablad.Client) -> None:
    assert everybody.evaluate("sum_of_squares", [3.0, 4.0]).value == 25.0
    assert everybody.healthy()
    with everybody.pipeline() as pipeline:
        assert pipeline.evaluate("sum_of_squares", [3.0, 4.0]).result().value == 25.0
    with everybody.linearize("sum_of_squares", [3.0, 4.0]) as at:
        assert at.vjp(1.0).tolist() == [6.0, 8.0]
    with everybody.stream_hessian("sum_of_squares", [3.0, 4.0]) as rows:
        assert [block.array.tolist() for block in rows] == [[[2.0, 0.0], [0.0, 2.0]]]

    async def asked() -> tuple[float, list[int]]:
        async with aio.Client(served.address, token=PEOPLE[3]["tokens"][0]) as client:
            value = float((await client.evaluate("sum_of_squares", [3.0, 4.0])).value)
            async with client.pipeline() as pipeline:
                value += float((await pipeline.evaluate("sum_of_squares", [3.0, 4.0])).value)
            async with client.stream_hessian("sum_of_squares", [3.0, 4.0]) as rows:
                return value, [block.first_row async for block in rows]

    assert asyncio.run(asked()) == (50.0, [0])


def about(method: Any, name: str) -> dict[str, bytes]:
    """Every kind of request of a method that names a function, with nothing else in it."""
    kind = GetMessageClass(method.input_type)
    if "function" in method.input_type.fields_by_name:
        return {"": kind(function=name).SerializeToString()}
    if method.name == "Linearize":
        point = differentiation_pb2.LinearizePoint(function=name)
        return {"": kind(point=point).SerializeToString()}
    holder = kind.DESCRIPTOR
    if method.name == "Pipeline":
        holder = differentiation_pb2.Operation.DESCRIPTOR
    if "request" not in holder.oneofs_by_name:
        return {}
    found = {}
    for field in holder.oneofs_by_name["request"].fields:
        asked: Any = field.message_type
        inner: Any = {field.name: GetMessageClass(asked)(function=name)}
        if method.name == "Pipeline":
            inner = {"operations": [differentiation_pb2.Operation(id=1, **inner)]}
        found[field.name] = kind(**inner).SerializeToString()
    return found


def error_of(channel: grpc.Channel, method: Any, message: bytes) -> NabladError | None:
    """Why a guest's request failed, as a call or as an operation of a stream; None if it did not."""
    try:
        name = f"/{method.containing_service.full_name}/{method.name}"
        ask: Any = channel.stream_stream(name)
        answers = list(ask(iter([message]), metadata=bearing("guest-1"), timeout=60))
    except grpc.RpcError as error:
        return from_rpc_error(error)
    if method.name == "Pipeline":
        (answer,) = differentiation_pb2.PipelineResponse.FromString(answers[0]).answers
        return from_wire(answer.error) if answer.HasField("error") else None
    return None


ABOUT = [method for method in METHODS if about(method, "any")]


def test_every_method_is_about_a_function_or_known_not_to_be() -> None:
    assert {method.name for method in METHODS} - {method.name for method in ABOUT} == {"ListFunctions", "Reload"}


@pytest.mark.parametrize("method", ABOUT, ids=lambda method: method.name)
def test_functions_that_are_not_on_the_list_are_refused_whether_or_not_they_exist(
    served: ServerProcess, method: Any
) -> None:
    with grpc.insecure_channel(served.address) as channel:
        for kind, message in about(method, "rosenbrock").items():
            assert not isinstance(error_of(channel, method, message), PermissionDenied), kind
        for kind in about(method, "any"):
            answers = set()
            for name in ("himmelblau", "himmelblau@1", "himmelblau@99", "nosuch", "exp", "exp@2", "s", "rosenbrocks",
                         "not a name"):  # fmt: skip
                error = error_of(channel, method, about(method, name)[kind])
                assert isinstance(error, PermissionDenied), (kind, name)
                answers.add((error.message.replace(repr(name), "?"), error.field, error.reason, str(error.metadata)))
            assert len(answers) == 1


def test_what_others_asked_before_is_no_way_around_the_list(
    served: ServerProcess, everybody: nablad.Client, guest: nablad.Client
) -> None:
    """A request that is recognised without being parsed is refused, too."""
    asked = differentiation_pb2.GradientRequest(
        function="himmelblau", inputs=[NamedTensor(name="x", tensor=to_tensor([1.0, 2.0]))]
    ).SerializeToString()
    point = differentiation_pb2.LinearizePoint.FromString(asked)
    opening = differentiation_pb2.LinearizeRequest(point=point).SerializeToString()
    operation = differentiation_pb2.Operation(id=1, gradient=differentiation_pb2.GradientRequest.FromString(asked))
    batch = differentiation_pb2.PipelineRequest(operations=[operation]).SerializeToString()
    with grpc.insecure_channel(served.address) as channel:
        for name, message in (("Gradient", asked), ("Pipeline", batch), ("Linearize", opening)):
            (method,) = (method for method in METHODS if method.name == name)
            for _ in range(3):
                assert called(channel, method, bearing("everything-1"), message) == grpc.StatusCode.OK
            assert isinstance(error_of(channel, method, message), PermissionDenied)
            assert called(channel, method, bearing("everything-1"), message) == grpc.StatusCode.OK


def test_a_guest_uses_what_is_on_the_list(guest: nablad.Client) -> None:
    assert guest.gradient("rosenbrock", [1.0, 2.0]).gradient.tolist() == [-400.0, 200.0]
    assert guest.gradient("rosenbrock@1", [1.0, 2.0]).gradient.tolist() == [-400.0, 200.0]
    assert guest.evaluate("exp@1", 0.0).value == 1.0
    assert guest.evaluate("sin", 0.0).value == 0.0
    with guest.pipeline() as pipeline:
        assert pipeline.evaluate("rosenbrock", [1.0, 2.0]).result().value == 100.0
    with guest.stream_hessian("rosenbrock", [1.0, 2.0]) as rows:
        assert [block.array.tolist() for block in rows] == [[[402.0, -400.0], [-400.0, 200.0]]]
    with pytest.raises(PermissionDenied):
        guest.gradient("himmelblau", [1.0, 2.0])


def test_a_guest_sees_no_more_than_what_is_on_the_list(guest: nablad.Client, everybody: nablad.Client) -> None:
    everybody.evaluate("himmelblau", [1.0, 2.0])
    guest.evaluate("rosenbrock", [1.0, 2.0])
    every = {info.name for info in everybody.functions()}
    assert {info.name for info in guest.functions()} == {
        name for name in every if name in {"rosenbrock", "exp"} or name.startswith("si")
    }
    assert "himmelblau" in {one.function.split("@")[0] for one in everybody.statistics()}
    assert {one.function.split("@")[0] for one in guest.statistics()} <= {"rosenbrock", "exp", "sin"}


def test_a_function_that_is_allowed_and_not_there_gives_no_hint_of_others(guest: nablad.Client) -> None:
    with pytest.raises(FunctionNotFound) as missing:
        guest.evaluate("sinn", 0.0)
    assert missing.value.message == "there is no function 'sinn'"


def until(condition: Callable[[], bool]) -> None:
    """Asks the server again and again; it looks at its files once a second."""
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up


def outcome(client: nablad.Client, function: str = "sum_of_squares") -> type[NabladError] | None:
    try:
        client.evaluate(function, [3.0, 4.0])
    except NabladError as error:
        return type(error)
    return None


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[tuple[ServerProcess, Path]]:
    """A server, and its file of identities, which the test may change."""
    path = tmp_path / "identities.toml"
    write_identities(path, PEOPLE)
    with ServerProcess("--tokens", path) as process:
        yield process, path
        assert process.errors() == []


def test_tokens_are_rotated_and_revoked_while_the_server_serves(changing: tuple[ServerProcess, Path]) -> None:
    process, path = changing
    address = process.address
    with (
        as_caller(address, "evaluator-1") as old,
        as_caller(address, "evaluator-3") as new,
        as_caller(address, "everything-1") as other,
    ):
        assert outcome(old) is None
        assert outcome(new) is Unauthenticated
        write_identities(path, [PEOPLE[0] | {"tokens": ["evaluator-1", "evaluator-3"]}, PEOPLE[3]])
        until(lambda: outcome(new) is None)
        assert outcome(old) is None
        assert outcome(other) is None
        write_identities(path, [PEOPLE[0] | {"tokens": ["evaluator-3"]}, PEOPLE[3]])
        until(lambda: outcome(old) is Unauthenticated)
        assert outcome(new) is None
        write_identities(path, [])
        until(lambda: outcome(new) is Unauthenticated)
        assert outcome(other) is Unauthenticated


@pytest.mark.parametrize(
    ("change", "reason"), [({"tokens": ["evaluator-2"]}, Unauthenticated), ({"roles": ["catalogue"]}, PermissionDenied)]
)
def test_an_open_stream_ends_when_its_token_or_role_is_revoked(
    changing: tuple[ServerProcess, Path], change: dict[str, Any], reason: type[NabladError]
) -> None:
    process, path = changing
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.insecure_channel(process.address) as channel:
        ask: Any = channel.stream_stream("/nablad.v1.DifferentiationService/Pipeline")
        stream = ask(iter(messages.get, None), metadata=bearing("evaluator-1"), timeout=120)
        messages.put(differentiation_pb2.PipelineRequest(operations=[operation(1)]).SerializeToString())
        assert next(stream)
        write_identities(path, [PEOPLE[0] | change])
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        messages.put(None)
    assert isinstance(from_rpc_error(ended.value), reason)


def test_an_open_stream_follows_the_list_of_functions(changing: tuple[ServerProcess, Path]) -> None:
    process, path = changing
    narrowed = [*PEOPLE[:4], PEOPLE[4] | {"functions": ["exp"]}]
    with (
        as_caller(process.address, "guest-1") as client,
        client.pipeline() as pipeline,
        client.linearize("rosenbrock", [1.0, 2.0]) as at,
    ):
        assert pipeline.evaluate("rosenbrock", [1.0, 2.0]).result().value == 100.0
        assert at.hvp([1.0, 0.0]).tolist() == [402.0, -400.0]
        write_identities(path, narrowed)
        until(lambda: isinstance(pipeline.evaluate("rosenbrock", [1.0, 2.0]).exception(), PermissionDenied))
        with pytest.raises(PermissionDenied):
            at.hvp([1.0, 0.0])
        write_identities(path, PEOPLE)
        until(lambda: pipeline.evaluate("rosenbrock", [1.0, 2.0]).exception() is None)
        assert at.hvp([1.0, 0.0]).tolist() == [402.0, -400.0]


@pytest.mark.parametrize(
    "content",
    [
        "no TOML",
        '[[identity]]\nname = "a"\nroles = ["evaluate"]\n',
        '[[identity]]\nname = "a"\nroles = ["emperor"]\ncertificate = "a"\n',
        '[[identity]]\nname = "a"\nroles = ["evaluate"]\ntoken_sha256 = "evaluator-1"\n',
        '[[identity]]\nname = "a"\nroles = ["evaluate"]\ncertificate = "a"\nfunction = ["b"]\n',
        '[[identity]]\nname = "a"\nroles = ["evaluate"]\ncertificate = "a"\nfunctions = ["*b"]\n',
        '[[identity]]\nname = "a"\nroles = ["evaluate"]\ncertificate = ["a", "a"]\n',
    ],
)
def test_a_broken_file_is_refused_at_start_up(tmp_path: Path, content: str) -> None:
    path = tmp_path / "identities.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as refused:
        read_identities(path, Limits())
    assert "evaluator-1" not in str(refused.value)


def test_a_file_that_everybody_can_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identities.toml"
    write_identities(path, PEOPLE)
    path.chmod(0o602)
    with pytest.raises(PermissionError, match="chmod"):
        read_identities(path, Limits())


def test_a_broken_new_file_changes_nothing(changing: tuple[ServerProcess, Path]) -> None:
    process, path = changing
    with as_caller(process.address, "evaluator-1") as client:
        for content in (b"no TOML", b'[[identity]]\nname = "a"\ntoken_sha256 = "evaluator-1"\n', b"\xff"):
            replace(path, content)
            process.wait_for("not reloaded, the old stays")
            assert outcome(client) is None
        path.unlink()
        process.wait_for("not reloaded, the old stays")
        assert outcome(client) is None
        write_identities(path, [])
        until(lambda: outcome(client) is Unauthenticated)
    assert "evaluator-1" not in str(process.log)


def operation(identity: int) -> differentiation_pb2.Operation:
    inputs = [NamedTensor(name="x", tensor=to_tensor([3.0, 4.0]))]
    return differentiation_pb2.Operation(
        id=identity, evaluate=differentiation_pb2.EvaluateRequest(function="sum_of_squares", inputs=inputs)
    )


def test_health_is_open(served: ServerProcess) -> None:
    with grpc.insecure_channel(served.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with nablad.Client(served.address) as stranger:
        assert stranger.healthy()


def test_strangers_who_watch_the_health_hold_nobody_up(served: ServerProcess, everybody: nablad.Client) -> None:
    with grpc.insecure_channel(served.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watches = [watch(health_pb2.HealthCheckRequest(), timeout=120) for _ in range(40)]
        for one in watches:
            assert next(one).status == health_pb2.HealthCheckResponse.SERVING
        assert list(everybody.functions())
        for one in watches:
            one.cancel()


def test_open_streams_of_reflection_hold_nobody_up(served: ServerProcess, everybody: nablad.Client) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    queues: list[queue.SimpleQueue[reflection_pb2.ServerReflectionRequest | None]] = []
    with grpc.insecure_channel(served.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        def opened() -> Any:
            queues.append(queue.SimpleQueue())
            queues[-1].put(request)
            return stub.ServerReflectionInfo(iter(queues[-1].get, None), metadata=bearing("reader-1"), timeout=60)

        held = [opened() for _ in range(40)]
        for stream in held:  # once it has answered, it is inside
            assert next(stream).HasField("list_services_response")
        assert list(everybody.functions())
        for one in queues:
            one.put(None)
        assert [list(stream) for stream in held] == [[] for _ in held]


def reflected(address: str, token: str | None) -> grpc.StatusCode:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        try:
            list(stub.ServerReflectionInfo(iter([request]), metadata=bearing(token), timeout=60))
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def test_reflection_is_for_the_catalogue(served: ServerProcess) -> None:
    assert reflected(served.address, None) == grpc.StatusCode.UNAUTHENTICATED
    assert reflected(served.address, "evaluator-1") == grpc.StatusCode.PERMISSION_DENIED
    assert reflected(served.address, "reader-1") == grpc.StatusCode.OK


def test_reflection_can_be_switched_off() -> None:
    with ServerProcess("--no-reflection") as process:
        assert reflected(process.address, None) == grpc.StatusCode.UNIMPLEMENTED


def test_a_certificate_says_who_calls(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    path = tmp_path / "identities.toml"
    write_identities(path, [{"name": "training", "certificate": "training.test", "roles": ["evaluate"]}, *PEOPLE[1:2]])
    options = (*files.arguments(), "--tls-client-ca", files.ca, "--tokens", path)
    with ServerProcess(*options) as process:
        known, unknown = files.client("training.test"), files.client("stranger.test")
        (reader,) = PEOPLE[1]["tokens"]
        with nablad.Client(process.address, tls=known) as client:
            assert outcome(client) is None
            with pytest.raises(PermissionDenied):
                list(client.functions())
        with nablad.Client(process.address, tls=unknown) as client:
            assert client.healthy()
            assert outcome(client) is Unauthenticated
        with nablad.Client(process.address, tls=unknown, token=reader) as client:
            assert list(client.functions())
        # A token that is wrong is not made right by a certificate.
        with nablad.Client(process.address, tls=known, token=reader[:-1]) as client:
            assert outcome(client) is Unauthenticated
        write_identities(path, PEOPLE)
        with nablad.Client(process.address, tls=known) as client:
            until(lambda: outcome(client) is Unauthenticated)


def test_without_identities_a_certificate_allows_all_but_administration(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    with (
        ServerProcess(*files.arguments(), "--tls-client-ca", files.ca) as process,
        nablad.Client(process.address, tls=files.client("anybody.test")) as client,
    ):
        assert outcome(client) is None
        assert list(client.functions())
        with pytest.raises(PermissionDenied):
            client.reload()


def test_the_command_line_sends_the_token_over_tls(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    path = tmp_path / "identities.toml"
    write_identities(path, PEOPLE)
    run = CliRunner().invoke
    with ServerProcess(*files.arguments(), "--tokens", path) as process:
        to = ["--address", process.address, "--tls-ca", str(files.ca)]
        listed = run(main, ["list", "--json", *to, "--token", "reader-1"])
        assert listed.exit_code == 0, listed.output
        assert "rosenbrock" in {info["name"] for info in json.loads(listed.stdout)}
        environment = {
            "NABLAD_TARGET": process.address, "NABLAD_TARGET_TLS_CA": str(files.ca), "NABLAD_TOKEN": "evaluator-1",
        }  # fmt: skip
        given = ["gradient", "rosenbrock", "-i", "x=1,2", "--json"]
        assert json.loads(run(main, given, env=environment).stdout)["gradient"] == [-400.0, 200.0]
        nobody = run(main, ["list", *to])
        assert nobody.exit_code == 1
        assert "Unauthenticated" in nobody.output
        assert run(main, ["health", *to]).exit_code == 0
        assert run(main, ["health", "--address", process.address]).exit_code == 1


def test_a_token_that_the_command_makes_lets_its_bearer_in(tmp_path: Path) -> None:
    path = tmp_path / "identities.toml"
    made = CliRunner().invoke(token_command, ["träning", "--role", "evaluate", "--function", "sum_*"])
    path.write_text(made.stdout)
    secret = made.stderr.splitlines()[-1]
    assert len(secret.removeprefix("nablad_")) == 43  # 256 bits, 6 in a character
    assert secret not in made.stdout
    assert secret != CliRunner().invoke(token_command, ["träning"]).stderr.splitlines()[-1]
    with ServerProcess("--tokens", path) as process, nablad.Client(process.address, token=secret) as client:
        assert outcome(client) is None
        assert outcome(client, "rosenbrock") is PermissionDenied
        with pytest.raises(PermissionDenied):
            list(client.functions())
