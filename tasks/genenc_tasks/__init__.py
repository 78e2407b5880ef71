"""Prefect tasks: one core call each, with a name, retries and tags."""
