"""Preflight: what would fail on this cluster, before it is queued."""
