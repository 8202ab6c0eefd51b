"""Jacobians and Hessians, which come in blocks, as matrices."""

from collections.abc import Sequence

import numpy as np

from nablad.tensors import Array


def assembled(blocks: Sequence[Array], rows: Sequence[int], columns: Sequence[int]) -> Array:
    """The matrices that blocks make up, [points, rows, columns] and float64.

    `blocks` are those of all pairs, row by row, [points] + row shape + column shape; `rows` and `columns` are how many
    elements each output and each input has.
    """
    count, down, across = len(blocks[0]), np.cumsum([0, *rows]), np.cumsum([0, *columns])
    matrices = np.empty((count, down[-1], across[-1]))
    for index, block in enumerate(blocks):
        row, column = divmod(index, len(columns))
        matrices[:, down[row] : down[row + 1], across[column] : across[column + 1]] = block.reshape(
            count, rows[row], columns[column]
        )
    return matrices
