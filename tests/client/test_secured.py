"""What a client refuses to do before anything is sent."""

from pathlib import Path
from typing import Any

import grpc
import pytest

import nablad
from nablad import Tls, aio
from nablad._secured import metadata
from nablad.errors import InvalidArgument

LOCAL = [
    "127.0.0.1:50051", "127.1.2.3:1", "localhost:50051", "[::1]:50051", "unix:/run/nablad.sock", "unix:nablad.sock",
    "unix-abstract:nablad", "dns:///localhost:50051", "ipv4:127.0.0.1:1,127.0.0.1:2", "ipv6:[::1]:50051",
]  # fmt: skip
ELSEWHERE = [
    "nablad.prod:50051", "10.0.0.1:50051", "0.0.0.0:50051", "[::]:50051", "localhost.prod:50051",
    "127.0.0.1.prod:50051", "dns:///nablad.prod:50051", "ipv4:127.0.0.1:1,10.0.0.1:2",
    "dns://10.0.0.1/localhost:50051", "xds:///localhost",
]  # fmt: skip


@pytest.mark.parametrize("address", LOCAL)
def test_a_token_is_sent_to_this_machine_without_tls(address: str) -> None:
    assert metadata(address, None, "abc") == (("authorization", "Bearer abc"),)


@pytest.mark.parametrize("address", ELSEWHERE)
def test_a_token_is_sent_elsewhere_over_tls_alone(address: str) -> None:
    with pytest.raises(InvalidArgument, match="tls") as refused:
        metadata(address, None, "abc123")
    assert "abc123" not in str(refused.value)
    assert metadata(address, True, "abc123") == (("authorization", "Bearer abc123"),)
    assert metadata(address, Tls(), "abc123") == (("authorization", "Bearer abc123"),)


@pytest.mark.parametrize("token", ["", "a b", "a\n", "ä", "a\r\nx: y"])
def test_a_token_is_one_word(token: str) -> None:
    with pytest.raises(InvalidArgument, match="characters"):
        metadata("127.0.0.1:1", None, token)


@pytest.mark.parametrize("kind", [nablad.Client, aio.Client])
def test_the_clients_refuse_what_would_not_be_safe(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="read the token"):
        kind("nablad.prod:50051", token="abc")  # noqa: S106 - worth nothing
    with pytest.raises(InvalidArgument, match="needs both"):
        kind("nablad.prod:50051", tls=Tls(certificate=tmp_path / "own.pem"))
    with pytest.raises(FileNotFoundError):
        kind("nablad.prod:50051", tls=Tls(ca=tmp_path / "none.pem"))


@pytest.mark.parametrize("options", [{"tls": True}, {"tls": Tls()}, {"token": "abc"}])
def test_a_channel_of_ones_own_has_its_own_credentials(options: dict[str, Any]) -> None:
    with (
        grpc.insecure_channel("127.0.0.1:1") as channel,
        pytest.raises(InvalidArgument, match="channel of your own"),
    ):
        nablad.Client(channel=channel, **options)
