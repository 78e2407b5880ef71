"""Prefect flows: parameters in, tasks in order, a report out."""
