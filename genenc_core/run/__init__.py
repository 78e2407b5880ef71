"""One run from its parameters to a verified store: what tasks and the command line call."""
