"""Batching: which calls run together, when, and in whose turn. Knows nothing of derivatives."""
