"""Options that many commands have, and errors of usage, whose words may be names that a shell took from a folder."""

import contextlib
import functools
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

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, which refuses an option that is given twice and counts once."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and not hasattr(command, "reads_once"):
            command.reads_once = command.parse_args  # type: ignore[attr-defined]
            command.parse_args = functools.partial(_parse_once, command)  # type: ignore[method-assign]
        return command

    def invoke(self, ctx: Any) -> Any:
        """Read the command's arguments and run it."""
        with _printable_errors():
            return super().invoke(ctx)


def _parse_once(command: Any, ctx: Any, args: list[str]) -> list[str]:
    """Read a command's arguments; of an option given twice nobody knows which is meant."""
    given = list(args)
    _values, _rest, order = command.make_parser(ctx).parse_args(args=list(args))
    for parameter in dict.fromkeys(order):
        if order.count(parameter) < 2 or getattr(parameter, "multiple", True) or parameter.is_flag:
            continue
        values = [_value(given, at, parameter.opts) for at in range(len(given))]
        shown = " and ".join(repr(value) for value in values if value is not None)
        raise typer.BadParameter(f"{parameter.opts[0]} is given more than once, as {shown}; give it once", ctx=ctx)
    found: list[str] = command.reads_once(ctx, args)
    return found


def _value(args: list[str], at: int, names: list[str]) -> str | None:
    """Return the value of an option that stands at `at`."""
    name, equals, value = args[at].partition("=")
    if name not in names:
        return None
    return value if equals else args[at + 1] if at + 1 < len(args) else ""


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except _USAGE as error:
        error.message = text.printable(text.redacted(error.message))
        raise
