"""Functions written with PyTorch: run on the host's processor, differentiated by `torch.func`.

Imported only where there is such a function: PyTorch is an extra.
"""

import copy
import logging
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nablad.errors import FunctionFailed, NabladError, NotDifferentiable
from nablad.tensors import NUMBERS, Array
from nablad_server.functions.function import function_failed
from nablad_server.functions.precision import canonical
from nablad_server.functions.signature import ArraySpec, Signature, flatten_outputs
from nablad_server.functions.torch_calls import Tensors, TorchCall

BFLOAT16 = np.dtype(jnp.bfloat16)
DTYPES: dict[np.dtype[Any], Any] = {dtype: getattr(torch, dtype.name) for dtype in (*NUMBERS, BFLOAT16)}
"""PyTorch's dtype for each that the wire has."""

NUMPY = {dtype: known for known, dtype in DTYPES.items()}
NARROWED = {
    torch.float64: torch.float32, torch.complex128: torch.complex64, torch.int64: torch.int32,
    torch.uint64: torch.uint32,
}  # fmt: skip
"""What 32-bit programs hold instead."""

WIDE = frozenset({torch.float64, torch.complex128})

_ONE_AT_A_TIME = threading.Lock()
"""`torch.func.jvp` counts how deep it is nested in a variable of the process: two threads in it would fail both."""

# A function that raises an error while its shapes are found out has its caller told; PyTorch would print it, too.
logging.getLogger("torch._subclasses.fake_tensor").addFilter(lambda _: False)

if "OMP_NUM_THREADS" not in os.environ:
    # XLA and gRPC have threads, too, and PyTorch's wait for each other in turns of computing: with one for each core of
    # a busy machine of two, the Hessians of 64 points took 230 ms instead of 20 to 40.
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))

with warnings.catch_warnings():
    # Forward mode compiles some rules when it is first used, with a part of PyTorch that PyTorch warns of.
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.func.jvp(torch.sin, (torch.ones(()),), (torch.ones(()),))


class TorchFunction:
    """A function of tensors. See Foreign, whose attributes it has. Safe for threads: one runs at a time.

    Its tensors are its own to change in place. In 32-bit programs, where JAX holds int64 as int32, inputs that may be
    int64 are so again: PyTorch takes nothing else for most indices.
    """

    engine = "torch"

    def __init__(self, reference: str, call: Callable[..., Any], signature: Signature) -> None:
        self.reference = reference
        self.failure: NabladError | None = None
        self.call = _Root(self)
        self._call = call
        self._signature = signature
        int64 = np.dtype(np.int64)
        self._indices = [not spec.dtypes or int64 in spec.dtypes for spec in signature.inputs]

    def outputs_at(self, inputs: tuple[ArraySpec, ...]) -> tuple[tuple[str, ArraySpec], ...]:
        """The names, shapes and dtypes of the outputs.

        Found without computing anything, if that is possible; else, where shapes depend on values, at all ones.

        Raises:
            FunctionFailed: the function raised an error, or returns what is no tensor or number.
        """

        def results() -> list[tuple[str, Any]]:
            ones = tuple(torch.ones(spec.shape, dtype=DTYPES[spec.dtype]) for spec in inputs)
            return [(name, _tensor(leaf)) for name, leaf in flatten_outputs(self._result(ones, _is_narrow(ones)))]

        with torch.no_grad():
            try:
                try:
                    with FakeTensorMode(allow_non_fake_inputs=True):
                        found = results()
                except Exception:  # of many types, if a value is asked for
                    found = results()
                outputs = tuple(
                    (name, ArraySpec(tuple(leaf.shape), canonical(_numpy_dtype(leaf.dtype), inputs)))
                    for name, leaf in found
                )
            except Exception as error:
                raise function_failed(self.reference, inputs, error) from error
        if not outputs:
            raise FunctionFailed(f"{self.reference} returns no tensor", metadata={"function": self.reference})
        return outputs

    def flat(self, leaves: Tensors) -> Tensors:
        """The function from input leaves to output leaves, of a width that JAX's programs can hold."""
        narrow = _is_narrow(leaves)
        result = self._result(leaves, narrow)
        found = (result,) if isinstance(result, torch.Tensor) else tuple(map(_tensor, jtu.tree_leaves(result)))
        if not narrow:
            return found
        return tuple(leaf.to(NARROWED[leaf.dtype]) if leaf.dtype in NARROWED else leaf for leaf in found)

    def run(self, call: TorchCall, arrays: Sequence[Array], outputs: Sequence[ArraySpec]) -> list[Array]:
        """What a call that is made of this function gives.

        Raises:
            FunctionFailed: the function raised an error, or gave other shapes than at other values of its inputs.
            NotDifferentiable: the function can be run, but PyTorch cannot differentiate it so.
        """
        arguments = tuple(map(tensor_of, arrays))
        with _ONE_AT_A_TIME, torch.no_grad():  # which is about closures over parameters; torch.func does not mind
            try:
                found = call(arguments)
            except Exception as error:
                self.failure = self._failed(call, arguments, error)
                raise copy.copy(self.failure) from None  # with it, the arguments would be kept
            given = [(tuple(leaf.shape), leaf.dtype) for leaf in found]
            if given != [(spec.shape, DTYPES[spec.dtype]) for spec in outputs]:
                seen = ", ".join(f"{str(dtype).removeprefix('torch.')}{list(shape)}" for shape, dtype in given)
                self.failure = FunctionFailed(
                    f"{self.reference} gave {seen} where {', '.join(map(str, outputs))} was expected: the shapes and "
                    "dtypes of its outputs must follow from those of its inputs, whatever their elements are",
                    metadata={"function": self.reference},
                )
                raise copy.copy(self.failure)
            return list(map(array_of, found))

    def _failed(self, call: TorchCall, arguments: Tensors, error: Exception) -> NabladError:
        """The error of the function itself, if it raises one where it is only evaluated; else of its derivative."""
        metadata = {"function": self.reference, "exception": type(error).__name__}
        if call.derived:
            try:
                call.evaluate(arguments)
            except Exception as own:
                error, metadata["exception"] = own, type(own).__name__
            else:
                reason = str(error).partition("\n")[0][:500].rstrip(". ")
                return NotDifferentiable(
                    f"{self.reference}: the function can be evaluated, but PyTorch cannot differentiate it in this "
                    f"mode: {type(error).__name__}: {reason}. Try another mode, or finite differences",
                    metadata=metadata,
                )
        text = "\n".join(str(error).strip().splitlines()[:4])[:500]
        return FunctionFailed(f"{self.reference} raised {type(error).__name__}: {text}", metadata=metadata)

    def _result(self, leaves: Tensors, narrow: bool) -> Any:
        own = [
            leaf.long() if narrow and index and leaf.dtype == torch.int32 else leaf.clone()
            for leaf, index in zip(leaves, self._indices, strict=True)
        ]
        return self._call(*self._signature.unflatten(own))


class _Root(TorchCall):
    """The function itself."""

    def __init__(self, function: TorchFunction) -> None:
        super().__init__(function.run)
        self._function = function

    def __call__(self, arguments: Tensors) -> Tensors:
        return self._function.flat(arguments)

    def evaluate(self, arguments: Tensors) -> None:
        self._function.flat(arguments)


def tensor_of(array: Array) -> Any:
    """The same elements as a tensor; without a copy, if the array may be written to."""
    array = array if array.flags.writeable else array.copy()
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_of(tensor: Any) -> Array:
    """The same elements as an array, in row-major order."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        found: Array = tensor.view(torch.int16).numpy().view(BFLOAT16)
        return found
    return np.asarray(tensor.numpy())


def _is_narrow(leaves: Tensors) -> bool:
    """Whether JAX computes in 32-bit mode with such inputs. See precision.is_wide."""
    if any(leaf.dtype in WIDE for leaf in leaves):
        return False
    return any(leaf.is_floating_point() or leaf.is_complex() for leaf in leaves)


def _tensor(leaf: Any) -> Any:
    """A leaf of a result. Python's numbers are outputs too, as wide as they are. Raises TypeError for anything else."""
    return leaf if isinstance(leaf, torch.Tensor) else torch.from_numpy(np.array(leaf))


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    if dtype not in NUMPY:
        raise TypeError(f"it returns a tensor of {dtype}, which cannot be sent; convert it")
    return NUMPY[dtype]
