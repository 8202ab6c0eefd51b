"""A server of the examples' functions, and a classifier trained in process for those that need one."""

from collections.abc import Iterator

import pytest

import nablad
from classifier import Weights, in_process, load, train
from connection import MODELS
from servers import ServerProcess


@pytest.fixture(scope="module")
def models_address() -> Iterator[str]:
    """Where `nablad serve examples/models.py` listens."""
    with ServerProcess(MODELS) as process:
        yield process.address
        assert process.errors() == []


@pytest.fixture(scope="module")
def remote(models_address: str) -> Iterator[nablad.Client]:
    """A client of it."""
    with nablad.Client(models_address, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def weights() -> Weights:
    """Those of the examples' training."""
    return train(in_process, load()[0])[0][-1]
