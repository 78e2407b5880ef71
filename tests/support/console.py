"""Output of the campaigns, which take minutes."""

import sys


def say(text: str) -> None:
    """Write a line to standard output now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
