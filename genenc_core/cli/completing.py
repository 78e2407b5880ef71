"""Shell completion: the shell calls `genenc` with an environment variable set, and typer prints completions."""

import os

VARIABLE = "_GENENC_COMPLETE"


def prepare() -> None:
    """Set up typer's completion if this call comes from a shell."""
    if VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()


def script(shell: str) -> str:
    """Return the completion script for a shell."""
    from typer._completion_shared import get_completion_script

    return get_completion_script(prog_name="genenc", complete_var=VARIABLE, shell=shell)
