"""Completion in the shell: the shell calls `genenc` with a variable set, and typer answers instead of a command."""

import os

VARIABLE = "_GENENC_COMPLETE"


def prepare() -> None:
    """Make typer answer if a shell asks."""
    if VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()


def script(shell: str) -> str:
    """Return what a shell runs to know how to complete `genenc`."""
    from typer._completion_shared import get_completion_script

    return get_completion_script(prog_name="genenc", complete_var=VARIABLE, shell=shell)
