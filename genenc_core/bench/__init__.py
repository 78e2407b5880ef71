"""Benchmarks that users run on their own machine: every way side by side, in processes of their own, interleaved."""
