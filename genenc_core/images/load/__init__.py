"""Batched image loading through decode worker processes."""
