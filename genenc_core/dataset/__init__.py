"""Datasets that grow: sealed runs with one meaning, and a list of versions."""
