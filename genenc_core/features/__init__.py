"""What is done with stored features: search, traces, comparison, exports; a run made again from its records."""
