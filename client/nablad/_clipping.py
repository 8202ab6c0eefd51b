"""Bounds for gradients, as callers ask for them."""

from nablad.errors import InvalidOption
from nablad.v1 import differentiation_pb2 as pb


def clipping(norm: float | None, value: float | None) -> pb.Clipping | None:
    """The clipping on the wire; None for none. Raises InvalidOption for two bounds, or one that is not positive."""
    if norm is None and value is None:
        return None
    if norm is not None and value is not None:
        raise InvalidOption(
            f"got clip_norm={norm!r} and clip_value={value!r}; a gradient has one bound: give one of them"
        )
    name, bound = ("clip_norm", norm) if norm is not None else ("clip_value", value)
    if bound is None or not bound > 0:
        raise InvalidOption(f"{name} is {bound!r}; expected a positive number, or None for no bound")
    return pb.Clipping(global_norm=bound) if norm is not None else pb.Clipping(value=bound)
