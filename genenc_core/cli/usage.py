"""Options that many commands have, and errors of usage, whose words may be names that a shell took from a folder."""

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer
import typer.core

from genenc_core import text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Models = Annotated[
    list[str] | None,
    typer.Option(help="A folder of spec JSONs whose model_ids are names too; may be repeated."),
]
Trust = Annotated[bool, typer.Option("--trust", help="Load artifacts of unknown digest, and code that files name.")]
WeightsKey = Annotated[
    str | None, typer.Option(help="Entry of a weights file: a name, ema or plain; none: the EMA where there is one.")
]
AcceptChanged = Annotated[
    bool,
    typer.Option(
        "--accept-changed",
        help="Store files that changed since the run was planned, and record those gone as unreadable.",
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Without Prefect: the same run folder and bytes.")]
RunArgument = Annotated[str, typer.Argument(help="A run folder, or s3://bucket/prefix.", metavar="RUN")]

# The base of every error in how a command is called; typer shows it, but does not export it.
_USAGE: Any = typer.BadParameter.__base__


class Commands(typer.core.TyperGroup):
    """The commands; what is wrong with a call is said without characters that steer a terminal."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the arguments before the command."""
        with _printable_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Read the command's arguments and run it."""
        with _printable_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except _USAGE as error:
        error.message = text.printable(text.redacted(error.message))
        raise
