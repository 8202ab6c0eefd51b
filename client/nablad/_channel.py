"""The settings of a channel that production callers need, as defaults."""

import json

DEFAULT_ADDRESS = "127.0.0.1:50051"
ATTEMPTS = 4
"""How often a call that no server answered is made, all in all."""
BACKOFF_SECONDS = (0.1, 0.3, 0.9)
"""How long to wait before the second attempt, the third, the fourth."""

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            # Every RPC of these is pure: repeating one is safe.
            "name": [{"service": f"nablad.v1.{name}Service"} for name in ("Differentiation", "Diagnostics", "Catalog")],
            "waitForReady": False,
            "retryPolicy": {
                "maxAttempts": ATTEMPTS,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                # A server that stops cancels calls that reach it in that moment.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        },
        # What goes over a stream is asked for again by whoever reads it: only they know what is missing.
        {
            "name": [
                {"service": "nablad.v1.DifferentiationService", "method": method}
                for method in ("Pipeline", "StreamJacobian", "StreamHessian")
            ]
        },
    ],
    # After many failures retries stop for a while, so that they do not bury a server that is coming back.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
}


def options(retries: bool) -> list[tuple[str, str | int]]:
    """The channel options, with or without retries."""
    config = dict(_SERVICE_CONFIG) if retries else {"loadBalancingConfig": _SERVICE_CONFIG["loadBalancingConfig"]}
    return [
        ("grpc.service_config", json.dumps(config)),
        # Results are bounded by the server; requests by the server's limit, which it reports.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # Retries silently stop for requests above the buffer's default of 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", 256 << 20),
        # By default two minutes: a server that is back would be found late.
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Connections that died without a word are noticed within a minute and a half, idle ones are left alone.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
