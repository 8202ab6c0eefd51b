"""The standard gRPC health check, as the bytes that it is: one field each way, too little for a dependency."""

METHOD = "/grpc.health.v1.Health/Check"
REQUEST = b""
"""A HealthCheckRequest about the whole server."""


def serves(response: bytes) -> bool:
    """Whether a HealthCheckResponse says SERVING (field 1, value 1)."""
    return response == b"\x08\x01"
