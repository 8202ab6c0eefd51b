"""Derivatives: what an operator means, and the compiled programs that compute it."""
