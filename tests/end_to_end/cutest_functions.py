# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""A user's file of problems from CUTEst, as sif2jax has them.

Gould, Orban, Toint: CUTEst, a constrained and unconstrained testing environment with safe threads for mathematical
optimization, Comput. Optim. Appl. 60 (2015). The package itself builds all of its problems when it is imported, which
takes half a minute; here the modules of a few are imported past it.
"""

import importlib
import sys
import types
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from nablad_server import function


def _bare(package: str, path: Path) -> None:
    """A package without what its own __init__ would import."""
    bare = sys.modules[package] = types.ModuleType(package)
    bare.__path__ = [str(path)]


SIF2JAX = Path(str(distribution("sif2jax").locate_file("sif2jax")))
KINDS = ("_unconstrained_minimisation", "_constrained_minimisation")
_bare("sif2jax", SIF2JAX)
_bare("sif2jax.cutest", SIF2JAX / "cutest")
for _kind in KINDS:
    _bare(f"sif2jax.cutest.{_kind}", SIF2JAX / "cutest" / _kind)


def problem(kind: str, name: str) -> Any:
    """The class of a problem."""
    return getattr(importlib.import_module(f"sif2jax.cutest.{kind}.{name.lower()}"), name)


BROYDN7D = problem(KINDS[0], "BROYDN7D")
DIXMAANB = problem(KINDS[0], "DIXMAANB")
LUKVLE1 = problem(KINDS[1], "LUKVLE1")


@function(sizes={"n": 12})
def broydn7d(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Seven diagonals, one of them far from the others."""
    return BROYDN7D(n=x.shape[0]).objective(x, None)


@function(sizes={"n": 12})
def dixmaanb(x: Float[Array, "n"]) -> Float[Array, ""]:
    """A problem of Dixon and Maany, its variables in three parts."""
    return jnp.asarray(DIXMAANB(n=x.shape[0]).objective(x, None))


@function(sizes={"n": 12})
def lukvle1(x: Float[Array, "n"]) -> Float[Array, "m"]:
    """The constraints of a problem of Lukšan and Vlček: three elements in a row."""
    equalities, _ = LUKVLE1(n=x.shape[0]).constraint(x)
    return equalities
