"""Black boxes without a server: what is asked of their declarations, and the frames that they are spoken to in."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nablad.errors import FunctionFailed
from nablad_server.functions.black_box import BlackBox
from nablad_server.functions.frames import LENGTHS, packed, unpacked
from nablad_server.functions.function import Function
from nablad_server.functions.signature import ArraySpec
from nablad_server.functions.sources.python import load

HEADER = """
import numpy as np
from jaxtyping import Float, Float64, Int
from nablad_server.functions.registration import function

"""

MARKED = "@function(differentiable=False)\n"


def loaded(folder: Path, text: str, name: str = "boxes") -> Function:
    path = folder / f"{name}.py"
    path.write_text(HEADER + text)
    (found,) = load(str(path))
    return found


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        ("", "nothing says what it returns"),
        (" -> np.ndarray", "nothing says what it returns"),
        (" -> Float[np.ndarray, 'm']", "do not follow from the inputs"),
        (" -> Float[np.ndarray, '_']", "do not follow from the inputs"),
        (" -> Float[np.ndarray, '...']", "do not follow from the inputs"),
    ],
)
def test_what_it_returns_must_be_declared(tmp_path: Path, annotation: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        loaded(tmp_path, f"{MARKED}def f(x: Float[np.ndarray, 'n']){annotation}:\n    return x\n")


@pytest.mark.parametrize("option", ["sizes={'n': 3}", "sparsity={'hessian': lambda sizes: ([], [])}"])
def test_what_tracing_needs_is_not_given_for_nothing(tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match="has no use for sparsity= and sizes="):
        loaded(
            tmp_path,
            f"@function(differentiable=False, {option})\n"
            "def f(x: Float[np.ndarray, 'n']) -> Float[np.ndarray, '']:\n    return x[0]\n",
        )


def test_it_must_be_where_its_process_can_find_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="define it at the top of a file or a module"):
        loaded(
            tmp_path,
            "def made():\n"
            "    @function(differentiable=False)\n"
            "    def inner(x: Float[np.ndarray, '']) -> Float[np.ndarray, '']:\n"
            "        return x\n"
            "    return inner\n"
            "outer = made()\n",
        )


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(np.float64, ("float64", "int64", "float64")), (np.float32, ("float32", "int32", "float32")),
     (ml_dtypes.bfloat16, ("bfloat16", "int32", "float32"))],
)  # fmt: skip
def test_outputs_are_as_wide_as_the_inputs_if_they_may_be(tmp_path: Path, dtype: Any, wanted: tuple[str, ...]) -> None:
    box = loaded(
        tmp_path,
        "import jaxtyping\n"
        "@function(differentiable=False)\n"
        "def f(x: Float[np.ndarray, 'n']) -> tuple[\n"
        "    Float[np.ndarray, '2 n'], jaxtyping.Int64[np.ndarray, ''], Float64[np.ndarray, '']\n"
        "]:\n"
        "    return np.stack([x, x]), 1, 0.5\n",
    )

    found = box.outputs_at((ArraySpec((4,), np.dtype(dtype)),))

    assert [spec.dtype.name for _, spec in found] == list(wanted)
    assert [spec.shape for _, spec in found] == [(2, 4), (), ()]


def test_a_file_that_does_not_load_in_its_process_is_told_and_tried_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("2")
    reading = f"from pathlib import Path\nscale = int(Path({str(data)!r}).read_text())\n"
    text = f"{reading}{MARKED}def f(x: Float[np.ndarray, '']) -> Float[np.ndarray, '']:\n    return scale * x\n"
    box = loaded(tmp_path, text)
    assert isinstance(box.black_box, BlackBox)
    outputs = box.outputs_at((ArraySpec((), np.dtype(np.float64)),))
    points = [np.array([1.0, 2.5])]
    try:
        data.write_text("not today")
        with pytest.raises(FunctionFailed, match=r"could not be loaded: ValueError: .*not today"):
            box.black_box.values(points, outputs)
        data.write_text("2")
        np.testing.assert_array_equal(box.black_box.values(points, outputs)[0], [2.0, 5.0])
        box.black_box.end()
        np.testing.assert_array_equal(box.black_box.values(points, outputs)[0], [2.0, 5.0])
    finally:
        box.black_box.end()


def test_a_file_that_was_edited_is_another_function_and_is_not_run_before_a_reload(tmp_path: Path) -> None:
    text = f"{MARKED}def f(x: Float[np.ndarray, '']) -> Float[np.ndarray, '']:\n    return 2 * x\n"
    box = loaded(tmp_path, text)
    assert isinstance(box.black_box, BlackBox)
    outputs = box.outputs_at((ArraySpec((), np.dtype(np.float64)),))
    points = [np.array([1.0, 2.5])]
    try:
        np.testing.assert_array_equal(box.black_box.values(points, outputs)[0], [2.0, 5.0])
        (tmp_path / "boxes.py").write_text(HEADER + text.replace("2 * x", "3 * x"))
        np.testing.assert_array_equal(box.black_box.values(points, outputs)[0], [2.0, 5.0])
        box.black_box.end()
        with pytest.raises(FunctionFailed, match="is not what it was when the function was loaded"):
            box.black_box.values(points, outputs)
        (tmp_path / "boxes.py").write_text(HEADER + text)
        np.testing.assert_array_equal(box.black_box.values(points, outputs)[0], [2.0, 5.0])
    finally:
        box.black_box.end()


def test_frames_keep_arrays_as_they_are() -> None:
    arrays = [
        np.array([[1.0, np.nan]]), np.zeros((0, 3), np.float32), np.array(True), np.array([1j]),
        np.array([1.5, -2.0], ml_dtypes.bfloat16), np.arange(6).reshape(2, 3).T,
    ]  # fmt: skip

    frame = packed({"points": 7}, arrays)
    size, header_bytes = LENGTHS.unpack(frame[: LENGTHS.size])
    header, found = unpacked(header_bytes, frame[LENGTHS.size :])

    assert len(frame) == LENGTHS.size + size
    assert header["points"] == 7
    for one, other in zip(found, arrays, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def test_functions_of_a_module_are_found_where_the_server_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "boxes_in_a_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(
        f"{HEADER}{MARKED}def f(x: Float[np.ndarray, '']) -> Float[np.ndarray, '']:\n    return 3 * x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = load("boxes_in_a_package.inner")
    assert isinstance(found.black_box, BlackBox)

    outputs = found.outputs_at((ArraySpec((), np.dtype(np.float32)),))
    try:
        (values,) = found.black_box.values([np.array([1.0, 2.0], np.float32)], outputs)
    finally:
        found.black_box.end()

    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [3.0, 6.0])
