"""Which engine computes a function, and what is said where that cannot be."""

# ruff: noqa: F722 - jaxtyping's shapes are strings, not forward references
import importlib.util
import re

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from nablad_server.functions.registration import build, function


def square(x: Float[Array, ""]) -> Float[Array, ""]:
    return x * x


def sine(x: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.sin(x)


def test_jax_is_the_engine_unless_something_says_otherwise() -> None:
    assert build(square, "test").engine == "jax"
    assert build(function(name="named", engine="jax")(sine), "test").engine == "jax"


@pytest.mark.parametrize("engine", ["tensorflow", "", "Torch"])
def test_an_engine_that_is_none_is_refused(engine: str) -> None:
    def identity(x: Float[Array, ""]) -> Float[Array, ""]:
        return x

    wanted = f"function 'identity': engine={engine!r}; expected 'jax' or 'torch', or none to find out"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        build(function(engine=engine)(identity), "test")


def test_a_black_box_has_no_other_engine() -> None:
    def box(x: Float[np.ndarray, ""]) -> Float[np.ndarray, ""]:
        return x

    with pytest.raises(ValueError, match="engine='jax' differentiates it, and differentiable=False says not to"):
        build(function(engine="jax", differentiable=False)(box), "test")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_without_pytorch_its_functions_are_refused_with_what_to_install() -> None:
    def tensors(x: Float[Array, ""]) -> Float[Array, ""]:
        return x

    wanted = "function of PyTorch, which is not installed; install it with: pip install 'nablad[server,torch]'"
    with pytest.raises(ValueError, match=f"test: function 'tensors': it is a {re.escape(wanted)}"):
        build(function(engine="torch")(tensors), "test")
