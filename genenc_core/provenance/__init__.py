"""What produced a run: machine, packages, settings, times."""
