"""The command line in this process, without Prefect."""

import functools
from collections.abc import Sequence
from typing import Any
from unittest import mock

import typer
from typer import testing

from genenc_core.cli import app


def call(arguments: Sequence[str]) -> testing.Result:
    """Run a command; exceptions other than exits propagate."""
    # The runner would rebuild all commands for each call, which takes as long as a short command.
    with mock.patch.object(testing, "_get_command", return_value=_commands()):
        return testing.CliRunner().invoke(typer.Typer(), arguments, catch_exceptions=False)


@functools.cache
def _commands() -> Any:
    return typer.main.get_command(app.build_app())
