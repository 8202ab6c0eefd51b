"""The nablad server. A file of functions needs no more than `from nablad_server import function`."""

from nablad_server.functions.function import Warm
from nablad_server.functions.registration import function
from nablad_server.functions.signature import TensorSpec

__all__ = ["TensorSpec", "Warm", "function"]
