"""TLS, mutual TLS and Unix sockets, over real connections."""

import asyncio
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import nablad
from credentials import Certificates, replace, shown
from nablad import Tls, aio
from nablad.errors import Unavailable
from nablad_server.serving.listening import is_local, socket_path
from servers import ServerProcess

X = [1.0, 2.0]
VALUE = 100.0 * (2.0 - 1.0**2) ** 2 + (1.0 - 1.0) ** 2
"""Of Rosenbrock's function there."""
BEARER = "nablad_test"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secured(certificates: Certificates) -> Iterator[ServerProcess]:
    with ServerProcess(*certificates.arguments()) as process:
        yield process
        assert process.errors() == []


def evaluated(address: str, tls: Tls | bool | None) -> float:
    with nablad.Client(address, tls=tls, retries=False) as client:
        return float(client.evaluate("rosenbrock", X).value)


def test_a_verified_connection_carries_calls_of_both_clients(
    secured: ServerProcess, certificates: Certificates
) -> None:
    tls = Tls(ca=certificates.ca)
    assert evaluated(secured.address, tls) == VALUE

    async def asked() -> float:
        async with aio.Client(secured.address, tls=tls) as client:
            return float((await client.evaluate("rosenbrock", X)).value)

    assert asyncio.run(asked()) == VALUE


def test_a_server_that_nobody_vouches_for_is_not_talked_to(secured: ServerProcess, tmp_path: Path) -> None:
    stranger = Certificates(tmp_path)
    with pytest.raises(Unavailable, match=r"(?i)certificate|handshake"):
        evaluated(secured.address, Tls(ca=stranger.ca))
    with pytest.raises(Unavailable, match=r"(?i)certificate|handshake"):
        evaluated(secured.address, True)


def test_plaintext_is_not_answered_where_tls_is_on(secured: ServerProcess) -> None:
    with pytest.raises(Unavailable):
        evaluated(secured.address, None)


def test_the_name_in_the_certificate_counts(tmp_path: Path) -> None:
    elsewhere = Certificates(tmp_path, "nablad.test")
    with ServerProcess(*elsewhere.arguments()) as process:
        with pytest.raises(Unavailable):
            evaluated(process.address, Tls(ca=elsewhere.ca))
        assert evaluated(process.address, Tls(ca=elsewhere.ca, server_name="nablad.test")) == VALUE


def test_mutual_tls_admits_only_clients_that_the_authority_vouches_for(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    own, foreign = Certificates(tmp_path), Certificates(tmp_path / "foreign")
    with ServerProcess(*own.arguments(), "--tls-client-ca", own.ca) as process:
        assert evaluated(process.address, own.client("training.test")) == VALUE
        with pytest.raises(Unavailable):
            evaluated(process.address, Tls(ca=own.ca))
        intruder = foreign.client("training.test")
        with pytest.raises(Unavailable):
            evaluated(process.address, Tls(ca=own.ca, certificate=intruder.certificate, key=intruder.key))


def test_a_certificate_swapped_under_load_fails_no_call_and_is_shown_from_then_on(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    tls = Tls(ca=files.ca)
    with ServerProcess(*files.arguments()) as process:
        swapped = threading.Event()
        answers: list[float] = []
        failures: list[Exception] = []

        def load() -> None:
            try:
                while not swapped.is_set():
                    # A new connection each time, and calls over it: handshakes meet the swaps.
                    with nablad.Client(process.address, tls=tls) as client:
                        answers.extend(float(client.evaluate("rosenbrock", X).value) for _ in range(5))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        seen = [shown(process.address, files.ca)]
        for _ in range(10):
            files.renew()
            seen.append(shown(process.address, files.ca))
            assert seen[-1] == files.der()
        swapped.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert answers
        assert set(answers) == {VALUE}
        assert len(set(seen)) == len(seen)


def test_a_connection_outlives_the_certificate_that_it_began_with(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    with (
        ServerProcess(*files.arguments()) as process,
        nablad.Client(process.address, tls=Tls(ca=files.ca), retries=False) as client,
    ):
        assert client.evaluate("rosenbrock", X).value == VALUE
        files.renew()
        assert shown(process.address, files.ca) == files.der()
        assert client.evaluate("rosenbrock", X).value == VALUE


def test_a_broken_new_certificate_changes_nothing(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    another = files.authority.issue_cert("127.0.0.1")
    with ServerProcess(*files.arguments()) as process:
        for broken, content in (
            (files.certificate, b""),
            (files.key, b"no PEM at all"),
            (files.key, another.private_key_pem.bytes()),
            (files.certificate, another.cert_chain_pems[0].bytes()),
        ):
            files.renew()
            before = shown(process.address, files.ca)
            assert before == files.der()
            replace(broken, content)
            assert shown(process.address, files.ca) == before
            process.wait_for("not reloaded, the old stays")
            assert evaluated(process.address, Tls(ca=files.ca)) == VALUE
        files.renew()
        last = files.der()
        assert shown(process.address, files.ca) == last
        files.certificate.unlink()
        assert shown(process.address, files.ca) == last


def refused(*arguments: str | Path) -> str:
    """What the server says that does not start with these arguments."""
    process = ServerProcess(*arguments)
    with pytest.raises(RuntimeError, match="ended with status 1") as caught, process:
        pass
    return str(caught.value)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "some.host.test:0"])
def test_plaintext_for_other_machines_has_to_be_asked_for(address: str) -> None:
    assert "--plaintext" in refused("--address", address)


def looped(address: str) -> str:
    """The loopback interface's way to a server that listens on all."""
    return f"127.0.0.1:{address.rpartition(':')[2]}"


def test_plaintext_for_other_machines_can_be_asked_for() -> None:
    with ServerProcess("--address", "0.0.0.0:0", "--plaintext") as process:
        assert evaluated(looped(process.address), None) == VALUE


def test_tls_for_other_machines_needs_nothing_else(certificates: Certificates) -> None:
    with ServerProcess("--address", "0.0.0.0:0", *certificates.arguments()) as process:
        assert evaluated(looped(process.address), Tls(ca=certificates.ca)) == VALUE


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True), ("127.8.8.8:1", True), ("[::1]:1", True), ("localhost:1", True), ("unix:/run/a", True),
        ("unix-abstract:a", True), ("0.0.0.0:1", False), ("[::]:1", False), ("10.0.0.1:1", False),
        ("localhost.test:1", False), ("127.0.0.1.test:1", False), (":1", False), ("*:1", False),
    ],
)  # fmt: skip
def test_what_is_local(address: str, local: bool) -> None:
    assert is_local(address) == local


def test_settings_for_tls_come_together(certificates: Certificates, tmp_path: Path) -> None:
    assert "give both" in refused("--tls-certificate", certificates.certificate)
    assert "give both" in refused("--tls-key", certificates.key)
    assert "tls_client_ca is about TLS" in refused("--tls-client-ca", certificates.ca)
    assert "No such file" in refused("--tls-certificate", tmp_path / "none.pem", "--tls-key", certificates.key)
    assert "no certificate with its key" in refused("--tls-certificate", certificates.ca, "--tls-key", certificates.key)


def test_a_unix_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "nablad.sock"
    with ServerProcess("--address", f"unix:{path}") as process:
        assert process.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert evaluated(process.address, None) == VALUE
        # The umask that made it so is the socket's alone.
        assert socket_path(f"unix://{path}") == path
    assert not path.exists()


def test_a_unix_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "nablad.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.is_socket()
    with ServerProcess("--address", f"unix:{path}") as process:
        assert evaluated(process.address, None) == VALUE


def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "nablad.sock"
    with ServerProcess("--address", f"unix:{path}") as process:
        assert "a server listens on" in refused("--address", f"unix:{path}")
        assert evaluated(process.address, None) == VALUE


def test_a_file_in_the_place_of_a_unix_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    assert "is no socket" in refused("--address", f"unix:{path}")
    assert path.read_text() == "mine"


def test_nothing_is_sent_in_the_clear_over_tls(secured: ServerProcess, certificates: Certificates) -> None:
    """What goes over the wire, seen by somebody in between, has neither the token nor the function's name in it."""
    wire = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as between:
        host, port = between.getsockname()

        def carry(source: socket.socket, sink: socket.socket) -> None:
            try:
                while data := source.recv(65536):
                    wire.extend(data)
                    sink.sendall(data)
            except OSError:  # the other direction has ended
                return

        def serve() -> None:
            client, _ = between.accept()
            server = socket.create_connection(("127.0.0.1", int(secured.address.rpartition(":")[2])))
            with client, server:
                forth = threading.Thread(target=carry, args=(client, server))
                forth.start()
                carry(server, client)
                client.close()
                forth.join()

        thread = threading.Thread(target=serve)
        thread.start()
        tls = Tls(ca=certificates.ca)
        with nablad.Client(f"{host}:{port}", tls=tls, token=BEARER, retries=False) as client:
            assert client.evaluate("rosenbrock", X).value == VALUE
        thread.join()
    assert len(wire) > 1000
    assert BEARER.encode() not in wire
    assert b"rosenbrock" not in wire
