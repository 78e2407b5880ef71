"""Benchmarks for users' own machines: alternatives run in separate processes, with interleaved repeats."""
