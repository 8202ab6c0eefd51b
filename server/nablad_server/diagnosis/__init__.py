"""Diagnosis: what derivatives say of a function, in numbers. Pure arithmetic on results: no gRPC, and no JAX."""
