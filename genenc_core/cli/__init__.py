"""The command line: parses arguments, calls the core or a flow, prints the result and sets the exit code."""
