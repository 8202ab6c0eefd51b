"""The limits of connections: what the transport's core watches before there is a call."""

from dataclasses import dataclass

KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS = 60, 20
"""A connection on which nothing comes for so long is asked for a sign of life, and closed without one: a client that
vanished with its network would otherwise hold its calls for hours."""

CLIENT_PING_SECONDS = 10
"""Clients may ask for a sign of life so often. The core's default, every five minutes, closes connections of clients
that look for dead servers."""


@dataclass(frozen=True)
class Connections:
    """What connections may be like.

    Attributes:
        count: so many may be open; further ones are closed at once.
        calls: so many calls may be open on each; a client keeps further ones to itself until some have ended.
        header_bytes: of one call, both ways. Larger ones are answered with RESOURCE_EXHAUSTED.
        handshake_seconds: a connection that has not said by then what it wants is closed.
        idle_seconds: one without a call for so long is closed; 0: never.
        age_seconds: one as old as this, give or take a tenth, takes no further calls; 0: none is too old.
        grace_seconds: how long its calls may then go on.
    """

    count: int
    calls: int
    header_bytes: int
    handshake_seconds: float
    idle_seconds: float
    age_seconds: float
    grace_seconds: float

    def options(self) -> list[tuple[str, int]]:
        """As grpc.server takes them."""
        options = [
            ("grpc.max_allowed_incoming_connections", self.count),
            ("grpc.max_concurrent_streams", self.calls),
            # Between the two the core refuses at random: they are one.
            ("grpc.max_metadata_size", self.header_bytes),
            ("grpc.absolute_max_metadata_size", self.header_bytes),
            ("grpc.server_handshake_timeout_ms", round(self.handshake_seconds * 1e3)),
            ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
            ("grpc.http2.min_ping_interval_without_data_ms", CLIENT_PING_SECONDS * 1000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        if self.idle_seconds:
            options.append(("grpc.max_connection_idle_ms", round(self.idle_seconds * 1e3)))
        if self.age_seconds:
            options.append(("grpc.max_connection_age_ms", round(self.age_seconds * 1e3)))
            options.append(("grpc.max_connection_age_grace_ms", round(self.grace_seconds * 1e3)))
        return options
