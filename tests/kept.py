"""The sparse matrix of a result that must have one."""

import nablad


def kept(result: nablad.Hessian | nablad.Jacobian) -> nablad.SparseMatrix:
    """The matrix."""
    assert isinstance(result.sparse, nablad.SparseMatrix)
    return result.sparse
