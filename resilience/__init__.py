"""Breaks a running server on purpose and says what became of its callers: `python -m resilience --help`."""
