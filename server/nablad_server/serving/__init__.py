"""Serving: the gRPC front door. Decodes requests into queries, encodes results, turns exceptions into statuses."""
