"""Prefect tasks: one core call each, with a name and retries.

No task has tags: for each task run with a tag Prefect asks the server for a concurrency slot, so that a minute without
the server would fail the run. Deployments have them.
"""
