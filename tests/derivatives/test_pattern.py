import numpy as np
import pytest

from nablad.tensors import Array
from nablad_server.derivatives.pattern import DETECTED, Axis, Coloring, Pattern, ordered, places_of

NO_COLORS = Coloring(0, False, np.zeros(0, np.int32), np.zeros(0, np.int32))


def pattern(rows: list[int], columns: list[int], *axes: Axis) -> Pattern:
    down, across = axes or (Axis("x", (3,)), Axis("x", (3,)))
    return Pattern(
        (down,), (across,), np.asarray(rows, np.int32), np.asarray(columns, np.int32), DETECTED, NO_COLORS
    )  # fmt: skip


def test_elements_are_ordered_by_row_and_then_by_column_each_once() -> None:
    rows, columns = ordered([2, 0, 2, 0, 2], [1, 3, 0, 3, 1], (3, 4), symmetric=False)
    assert (rows.tolist(), columns.tolist()) == ([0, 2, 2], [3, 0, 1])
    assert rows.dtype == columns.dtype == np.int32


def test_a_symmetric_pattern_keeps_the_mirror_image_of_every_element() -> None:
    rows, columns = ordered([0, 2, 1], [1, 2, 0], (3, 3), symmetric=True)
    assert list(zip(rows, columns, strict=True)) == [(0, 1), (1, 0), (2, 2)]


def test_row_starts_are_those_of_compressed_rows() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    dense = np.random.default_rng(0).random((6, 9)) < 0.3
    rows, columns = np.nonzero(dense)
    found = pattern(rows.tolist(), columns.tolist(), Axis("y", (2, 3)), Axis("x", (9,)))
    assert found.shape == (6, 9)
    assert found.row_starts.tolist() == scipy_sparse.csr_array(dense).indptr.tolist()
    assert found.row_starts.dtype == np.int32


def test_fingerprints_are_equal_for_equal_patterns_of_equal_axes_alone() -> None:
    first = pattern([0, 1], [1, 2])
    assert first.fingerprint == pattern([0, 1], [1, 2]).fingerprint
    others = [
        pattern([0, 1], [1, 1]),
        pattern([0, 2], [1, 2]),
        pattern([0, 1], [1, 2], Axis("x", (3,)), Axis("y", (3,))),
        pattern([0, 1], [1, 2], Axis("x", (3, 1)), Axis("x", (3,))),
    ]
    assert len({other.fingerprint for other in others} | {first.fingerprint}) == 5


def test_places_lead_from_the_compressed_matrix_to_every_element() -> None:
    dense = np.diag([1.0, 2, 3, 4]) + np.diag([5.0, 6, 7], 1)
    rows, columns = np.nonzero(dense)
    colors = np.array([0, 1, 0, 1])
    compressed = np.stack([dense[:, colors == color].sum(axis=1) for color in (0, 1)])
    places = places_of(columns, rows, colors, compressed.shape)
    assert compressed.reshape(-1)[places].tolist() == dense[rows, columns].tolist()


@pytest.mark.parametrize("colors", [[0, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
def test_a_star_coloring_reads_elements_from_their_mirror_images(colors: list[int]) -> None:
    dense = np.diag(np.arange(1.0, 6))
    dense[0, 1:] = dense[1:, 0] = [7, 8, 9, 10]
    rows, columns = np.nonzero(dense)
    hues: Array = np.array(colors)
    compressed = np.stack([dense[:, hues == color].sum(axis=1) for color in (0, 1)])
    places = places_of(columns, rows, hues, compressed.shape, symmetric=True)
    assert compressed.reshape(-1)[places].tolist() == dense[rows, columns].tolist()


def test_a_coloring_that_mixes_elements_is_refused() -> None:
    rows, columns = np.nonzero(np.ones((2, 2)))
    with pytest.raises(ValueError, match="mixes"):
        places_of(columns, rows, np.array([0, 0]), (1, 2))
    with pytest.raises(ValueError, match="mixes"):
        places_of(columns, rows, np.array([0, -1]), (1, 2))  # a line without a color
    with pytest.raises(ValueError, match="32-bit"):
        places_of(columns, rows, np.array([0, 1]), (1 << 16, 1 << 16))
