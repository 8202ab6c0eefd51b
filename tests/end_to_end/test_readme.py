"""What the README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse.linalg import eigsh
from scipy.stats import norm

import nablad
from servers import ServerProcess

ROOT = Path(__file__).parents[2]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_functions_and_the_calls_of_the_readme(tmp_path: Path) -> None:
    functions, calls, pipelines, second_order, trust = blocks("python")
    (tmp_path / "models.py").write_text(functions)
    with ServerProcess(tmp_path / "models.py") as server:
        found: dict[str, Any] = {}
        exec(calls.replace("127.0.0.1:50051", server.address), found)  # noqa: S102 - the README's own code
        greeks = found["greeks"]
        d = (np.log(100 / 95) + 0.2**2 / 2) / 0.2
        assert np.allclose(greeks.value, 100 * norm.cdf(d) - 95 * norm.cdf(d - 0.2), rtol=1e-12)
        assert np.allclose(greeks.gradient["spot"], norm.cdf(d), rtol=1e-12)
        assert np.allclose(greeks.gradient["vol"], 100 * norm.pdf(d), rtol=1e-12)
        exec(pipelines.replace("127.0.0.1:50051", server.address), found)  # noqa: S102 - likewise
        exec(second_order.replace("127.0.0.1:50051", server.address), found)  # noqa: S102 - likewise
        assert found["hessian"].nnz == 59_998
        assert np.isclose(sum(found["traces"]), found["hessian"].diagonal().sum(), rtol=1e-12)
        assert np.allclose(found["product"], found["hessian"] @ np.ones(20_000), rtol=1e-9, atol=1e-9)
        exec(trust.replace("127.0.0.1:50051", server.address), found)  # noqa: S102 - likewise
        assert found["check"].verdict == "pass"
        assert np.isclose(found["clipped"].norm, np.hypot(215.6, 88.0), rtol=1e-14)
        assert np.isclose(np.linalg.norm(found["clipped"].gradient), 1, rtol=1e-14)
        assert found["curvature"].definiteness == "positive_definite"
        assert round(found["curvature"].condition_number) == 2508
        largest = eigsh(found["hessian"], k=3, return_eigenvectors=False)
        assert np.allclose(found["largest"], largest, rtol=1e-9)
        with nablad.Client(server.address) as client:
            alone = client.gradient("rosenbrock", found["points"][:100], batched=True).gradient
            assert np.allclose(found["norms"][:100], np.linalg.norm(alone, axis=1), rtol=1e-12)
            product = client.hvp("rosenbrock", found["points"][0], found["points"][1]).hvp
            assert np.allclose(found["futures"][1].result().hvp, product, rtol=1e-12)
            for line in re.findall(r"^    f.*$", calls, re.MULTILINE):
                expression, _, comment = line.strip().partition("  ")
                if "array(" in comment:
                    value = eval(expression, {"f": client.function("rosenbrock"), "np": np})  # noqa: S307 - likewise
                    assert value.tolist() == eval(comment.strip(" #"), {"array": np.array}).tolist()  # noqa: S307


def test_the_shell_commands_of_the_readme_that_call(tmp_path: Path, server_address: str) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("nablad ")]
    assert {line.split()[1] for line in lines} == {"serve", "list", "gradient", "token"}
    (tmp_path / "models.py").write_text(blocks("python")[0])
    with ServerProcess(tmp_path / "models.py") as server:
        command = next(line for line in lines if line.startswith("nablad gradient")).split()[1:]
        done = subprocess.run(
            [sys.executable, "-m", "nablad", *command, "--address", server.address],
            check=True,
            capture_output=True,
            text=True,
        )
        assert "black_scholes" in done.stdout
