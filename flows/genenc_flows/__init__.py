"""Prefect flows for extraction and export."""
