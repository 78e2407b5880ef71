"""The command line: arguments in, one call into the core or a flow, words and an exit code out."""
