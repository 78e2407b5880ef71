"""Options that many commands have, how `--help` shows options, and errors of usage."""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
import typer.core

from genenc_core import text
from genenc_core.cli import output

INPUT = "Input"
POINTS = "Points"
MODEL = "Model"
SIZES = "Image size and tiles"
PRODUCTS = "Products"
STORE = "Store"
RUN = "Run"
GENERAL = "General"
DEVICES = "<auto|cpu|cuda:N>"
DEVICE_VALUES = ("auto", "cpu", "cuda:0")


def option(
    *names: str, help: str, group: str, default: str | None = None, values: Sequence[str] = (), **more: Any
) -> Any:
    """Return an option in a group of `--help`.

    `default` says what applies without it, where its value does not; a shell completes `values`, others are valid too.
    """
    if values:
        more["autocompletion"] = lambda: [*values]
    shown = help if default is None else f"{help}  [default: {default}]"
    return typer.Option(*names, help=shown, rich_help_panel=group, show_default=default is None, **more)


Json = Annotated[bool, option("--json", help="Print one JSON document.", group=GENERAL)]
Models = Annotated[
    list[str] | None,
    option(
        help="A folder of spec JSONs whose model_ids are names too; may be repeated.", group=MODEL, metavar="<folder>"
    ),
]
Trust = Annotated[
    bool, option("--trust", help="Load artifacts of unknown digest, and code that files name.", group=MODEL)
]
WeightsKey = Annotated[
    str | None,
    option(
        help="Entry of a weights file: a name, ema or plain.",
        group=MODEL,
        default="state_dict_ema or model_ema where there is one",
        metavar="<name|ema|plain>",
        values=("ema", "plain"),
    ),
]
Layers = Annotated[
    list[str] | None,
    option(
        help="Modules or stage indices whose outputs become slots, commas between: -2,-1.",
        group=MODEL,
        default="the model's own",
        metavar="<NAME|INDEX,...>",
    ),
]
ImageSize = Annotated[
    str | None,
    option(help="Model input in pixels.", group=SIZES, default="the model's own", metavar="<H|HxW>"),
]
MaxFailures = Annotated[
    str | None,
    option(
        help="Unreadable images allowed per shard: 12, 5% or 0.05.",
        group=RUN,
        default="5%, and always 10",
        metavar="<N|N%>",
    ),
]
AcceptChanged = Annotated[
    bool,
    option(
        "--accept-changed",
        help="Store files that changed since the run was planned, and record those gone as unreadable.",
        group=RUN,
    ),
]
Plain = Annotated[bool, option("--plain", help="Without Prefect: the same run folder and bytes.", group=GENERAL)]
RunArgument = Annotated[str, typer.Argument(help="A run folder, or s3://bucket/prefix.", metavar="RUN")]

# The base of every error in how a command is called; typer shows it, but does not export it.
_USAGE: Any = typer.BadParameter.__base__
_AS_JSON = "genenc.as_json"


class Command(typer.core.TyperCommand):
    """A command whose `--help` shows options in groups, and which refuses an option given twice that counts once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in dict.fromkeys(order):
            if order.count(parameter) < 2 or getattr(parameter, "multiple", True):
                continue
            if getattr(parameter, "is_flag", False):
                both = [name for name in (*parameter.opts, *parameter.secondary_opts) if name in args]
                if len(both) > 1:
                    raise typer.BadParameter(f"{' and '.join(both)} contradict each other; give one", ctx=ctx)
                continue
            values = [_value(args, at, parameter.opts) for at in range(len(args))]
            shown = " and ".join(repr(value) for value in values if value is not None)
            raise typer.BadParameter(f"{parameter.opts[0]} is given more than once, as {shown}; give it once", ctx=ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options under the names of their groups."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                group = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or GENERAL
                groups.setdefault(group, []).append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def command(app: typer.Typer, name: str | None = None, *, example: str, guide: str, **more: Any) -> Callable[..., Any]:
    """Return the decorator that adds a command; its `--help` ends with an example and the README's section."""
    epilog = f"\b\nExample: {example}\nGuide: README.md, {guide}"
    return app.command(name, cls=Command, epilog=epilog, **more)


class Commands(typer.core.TyperGroup):
    """The commands; a wrong call is said without characters that steer a terminal, and as JSON if asked."""

    def make_context(self, info_name: Any, args: list[str], *others: Any, **more: Any) -> Any:
        """Read the arguments before the command."""
        options = itertools.takewhile(lambda argument: argument != "--", args)
        as_json = any(option.partition("=")[0] == "--json" for option in options)
        with _told_errors(as_json=as_json):
            context = super().make_context(info_name, args, *others, **more)
        context.meta[_AS_JSON] = as_json
        return context

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`, with a default that typer takes without importing pydantic to convert it."""
        help_option = super().get_help_option(ctx)
        if help_option is not None:
            help_option.default = False
        return help_option

    def invoke(self, ctx: Any) -> Any:
        """Read the command's arguments and run it."""
        with _told_errors(as_json=ctx.meta[_AS_JSON]):
            return super().invoke(ctx)


def _value(args: list[str], at: int, names: list[str]) -> str | None:
    """Return the value of an option that stands at `at`."""
    name, equals, value = args[at].partition("=")
    if name not in names:
        return None
    return value if equals else args[at + 1] if at + 1 < len(args) else ""


@contextlib.contextmanager
def _told_errors(*, as_json: bool) -> Iterator[None]:
    try:
        yield
    except _USAGE as error:
        message = error.message.replace("Value error, ", "")
        error.message = text.printable(text.redacted(message + _near_choice(message)))
        if as_json:
            output.say_json({"error": error.format_message(), "exit_code": error.exit_code})
        raise
    except BrokenPipeError as error:  # typer would make exit code 1 of it
        raise typer.Exit(output.tell_lost_output(error)) from error


def _near_choice(message: str) -> str:
    """Return the choices that are spelled like a value which is none of them."""
    found = re.search(r"'([^']*)' is not one of (.*)", message)
    near = text.nearest(found[1], re.findall(r"'([^']*)'", found[2])) if found else ""
    return f" {near[0].upper()}{near[1:]}" if near else ""
