"""Functions whose derivatives are known to be right, and functions whose derivatives are known to be wrong.

CheckGradient must pass the ones and fail the others. Each file here is one that `nablad serve` and `nablad check` take:
`correct.py` has the catalogue in bad units, `faulty.py` the planted faults. To add one, write a function in the one or
the other and mark it; the tests take up all that there are.
"""
