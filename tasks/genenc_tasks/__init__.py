"""Prefect tasks, each wrapping one core call with a run name and retries.

Tasks have no tags: for each tagged task run, Prefect requests a concurrency slot from the server, so that a minute
without the server would fail the run. Tag deployments instead.
"""
