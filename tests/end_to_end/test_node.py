"""A caller that has nothing of ours but the .proto files: Node.js with its own gRPC and its own protocol buffers."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node")
NPM = shutil.which("npm")
SOURCE = Path(__file__).parent / "node"
PROTOS = Path(__file__).parents[2] / "protos"

pytestmark = pytest.mark.skipif(NODE is None or NPM is None, reason="node and npm are not installed")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "client.js"):
        shutil.copy(SOURCE / name, directory)
    # No script of a package is run: none needs to be.
    command = [str(NPM), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    assert installed.returncode == 0, installed.stderr
    return directory / "client.js"


@pytest.fixture(scope="module")
def printed(program: Path, server_address: str) -> Any:
    ran = subprocess.run(
        [str(NODE), program, server_address],
        env=os.environ | {"NABLAD_PROTOS": str(PROTOS)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_catalogue_is_listed(printed: Any) -> None:
    assert {"rosenbrock", "matvec", "softmax"} <= set(printed["functions"])


def test_a_function_is_described(printed: Any) -> None:
    (x,) = printed["rosenbrock"]["inputs"]
    assert (x["name"], x["differentiable"]) == ("x", True)
    assert [axis["symbol"] for axis in x["shape"]] == ["n"]
    assert "DTYPE_FLOAT64" in x["dtypes"]
    assert "OPERATOR_GRADIENT" in printed["rosenbrock"]["operators"]


def test_a_gradient_has_the_right_numbers(printed: Any) -> None:
    # Σ 100(xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)² at (1, 2, 3): 100·1² + 0² + 100·(−1)² + (−1)².
    assert printed["gradient"]["value"] == pytest.approx([201], rel=1e-14)
    assert printed["gradient"]["gradient"] == pytest.approx([-400, 1002, -200], rel=1e-14)
    assert printed["gradient"]["function"] == "rosenbrock@1"


def test_a_hessian_comes_in_rows_as_a_sparse_matrix_and_as_a_product(printed: Any) -> None:
    # ∂²/∂xᵢ²: 1200 xᵢ² − 400 xᵢ₊₁ + 2, and 200 for what stands on the right; beside it −400 xᵢ.
    rows = [[402, -400, 0], [-400, 3802, -800], [0, -800, 200]]
    assert printed["rows"] == [pytest.approx(row, rel=1e-14, abs=1e-12) for row in rows]
    assert printed["sparse"]["nonzeros"] == 7
    assert printed["sparse"]["values"] == pytest.approx([402, -400, -400, 3802, -800, -800, 200], rel=1e-14)
    assert printed["linearized"] == {"id": 7, "product": pytest.approx([402, -400, 0], rel=1e-14, abs=1e-12)}


def test_a_refusal_says_why(printed: Any) -> None:
    assert printed["refusal"]["code"] == "NOT_FOUND"
    assert printed["refusal"]["reason"] == "FUNCTION_NOT_FOUND"
    assert printed["refusal"]["domain"] == "nablad"
