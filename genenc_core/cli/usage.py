"""Shared options, `--config` files, grouped `--help` output and usage errors."""

import contextlib
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from genenc_core import errors, text
from genenc_core.choices import GENERAL
from genenc_core.cli import output
from genenc_core.models import trust
from genenc_core.system import small_files

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    Fields = Mapping[str, FieldInfo]

LARGEST_CONFIG = 2**20
SWITCHES = ("plain", "json")
"""Options of the command that are not parameters."""


def _known_option(key: str, config: Path, fields: "Fields") -> str:
    """Return the parameter that a config key names; flag names are accepted too."""
    from genenc_core.run import options

    known = [*fields, *SWITCHES]
    flags = {options.shown(field).flag: name for name, field in fields.items()}
    name = flags.get(key, key.replace("-", "_"))
    if name not in known:
        hint = text.nearest(name, known) or f"known: {', '.join(known)}"
        raise errors.InputError(f"--config {str(config)!r}: unknown option {key!r}; {hint}")
    return name


def _by_parameter(names: dict[str, str], found: dict[str, Any], config: Path) -> dict[str, Any]:
    """Return the options by parameter name; refuse two spellings of one, such as `product` and `products`."""
    keys: dict[str, str] = {}
    for key, name in names.items():
        if keys.setdefault(name, key) != key:
            raise errors.InputError(f"--config {str(config)!r} sets one option twice: {keys[name]!r} and {key!r}")
    return {name: found[key] for key, name in names.items()}


def _refuse_trust(config: Path, found: dict[str, Any], flags: dict[str, Any]) -> None:
    """Refuse `trust` in a config file, which may come from someone else: it must be given as a flag."""
    if "trust" in found:
        raise errors.InputError(f"--config {str(config)!r} cannot set trust: pass --trust on the command line")
    model = found.get("model")
    if isinstance(model, str) and flags.get("model") is None:
        trust.require(trust.dotted(model), who=f"--config {str(config)!r}", trust=bool(flags.get("trust")))


def refuse_more_images(images: str | None, more: Sequence[str]) -> None:
    """Refuse more than one IMAGES argument, usually an unquoted glob that the shell expanded.

    Raises:
        InputError: there is more than one.
    """
    if more:
        raise errors.InputError(
            f"expected one IMAGES argument, got {1 + len(more)}: {images!r}, {more[0]!r}{', ...' if more[1:] else ''}. "
            "Quote a glob so that the shell does not expand it ('photos/*.png'), or give a folder or a list"
        )


def merge_config(
    config: Path | None,
    flags: dict[str, Any],
    fields: "Fields",
    *,
    required: Sequence[str] = ("images", "model", "out"),
) -> dict[str, Any]:
    """Merge a TOML config file with the flags, which override it; includes `plain` and `json`.

    Relative paths in the file are resolved against its folder, those of flags against the working directory.

    Raises:
        InputError: the file cannot be read or is not TOML, a key is unknown, or a required option is missing.
    """
    found = {} if config is None else _read(config, flags, fields)
    merged = {**found, **{key: value for key, value in flags.items() if value is not None}}
    for name in SWITCHES:
        if not isinstance(merged.setdefault(name, False), bool):
            raise errors.InputError(f"--config {str(config)!r}: {name} = {merged[name]!r} should be true or false")
    for name in required:
        if name not in merged:
            shown = "IMAGES" if name == "images" else f"--{name}"
            raise errors.InputError(f"{shown} is missing: give it on the command line or in a --config file")
    return merged


def wants_json(config: Path | None) -> bool:
    """Return whether a config file asks for JSON, even if it is malformed, so that its errors are JSON too."""
    if config is None:
        return False
    try:
        written = small_files.read_text(config, most=LARGEST_CONFIG)
    except (OSError, ValueError, errors.GenencError):
        return False
    try:
        return tomllib.loads(written).get("json") is True
    except (ValueError, RecursionError):
        return re.search(r"^json\s*=\s*true\s*(#.*)?$", written, re.MULTILINE) is not None


def _read(config: Path, flags: dict[str, Any], fields: "Fields") -> dict[str, Any]:
    from genenc_core.run import parameters

    try:
        found = tomllib.loads(small_files.read_text(config, most=LARGEST_CONFIG))
    except errors.InputError as error:
        raise errors.InputError(f"--config {str(config)!r} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        other = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}.get(config.suffix.lower())
        hint = f'; a config file is TOML, not {other}: one option per line, such as model = "resnet18"' if other else ""
        raise errors.InputError(f"--config {str(config)!r} is not TOML: {error}{hint}") from error
    once = _by_parameter({key: _known_option(key, config, fields) for key in found}, found, config)
    named = {
        name: value if name in SWITCHES else parameters.located(name, value, config.parent, fields[name])
        for name, value in once.items()
    }
    _refuse_trust(config, named, flags)
    return named


def option(
    *names: str, help: str, group: str, default: str | None = None, values: Sequence[str] = (), **more: Any
) -> Any:
    """Return a typer option shown in a group of `--help`.

    `default` is the default shown in the help: "" for none, None for the value itself. `values` are offered by shell
    completion; other values are valid too.
    """
    if values:
        more["autocompletion"] = lambda: [*values]
    shown = f"{help}  [default: {default}]" if default else help
    return typer.Option(*names, help=shown, rich_help_panel=group, show_default=default is None, **more)


Json = Annotated[bool, option("--json", help="Print one JSON document.", group=GENERAL)]
Plain = Annotated[bool, option("--plain", help="Without Prefect: the same run folder and bytes.", group=GENERAL)]
Config = Annotated[
    Path | None,
    option(help="A TOML file of these options, images too; flags override it, its paths start at it.", group=GENERAL),
]
# Options that a config file may set: None if they are not given.
JsonOrConfig = Annotated[
    bool | None, option("--json/--no-json", help="Print one JSON document.", group=GENERAL, default="no-json")
]
PlainOrConfig = Annotated[
    bool | None,
    option(
        "--plain/--no-plain",
        help="Without Prefect: the same run folder and bytes.",
        group=GENERAL,
        default="no-plain",
    ),
]
RunArgument = Annotated[str, typer.Argument(help="A run folder, or s3://bucket/prefix.", metavar="RUN")]

# Base class of usage errors, which typer does not export.
_UsageError: Any = typer.BadParameter.__base__
_AS_JSON = "genenc.as_json"


class Command(typer.core.TyperCommand):
    """Command with grouped `--help` that refuses single-value options given twice."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
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
        """Write the options, grouped."""
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
    """Return a decorator that registers a command whose `--help` ends with an example and its guides."""
    epilog = f"\b\nExample: {example}\nGuide: {guide}"
    return app.command(name, cls=Command, epilog=epilog, **more)


def lazy_command(app: typer.Typer, name: str, *, short_help: str, **more: Any) -> Callable[..., Any]:
    """Return a decorator that registers a factory, called when the command is run or its help is shown.

    Such commands declare their options with pydantic, whose import would slow down `genenc --help`.
    """

    def add(make: Callable[[], Callable[..., None]]) -> Callable[[], Callable[..., None]]:
        def build() -> Any:
            single = typer.Typer(
                add_completion=False,
                rich_markup_mode=None,
                pretty_exceptions_enable=False,
                context_settings={"help_option_names": ["-h", "--help"]},
            )
            command(single, name, short_help=short_help, **more)(make())
            return typer.main.get_command(single)

        app.command(name, short_help=short_help)(_LazyCommand(build))
        return make

    return add


class _LazyCommand:
    """Placeholder for a command that is built on demand."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self.build = build
        self.__name__ = "lazy_command"
        self.__annotations__: dict[str, Any] = {}

    def __call__(self) -> None:
        """Do nothing: the placeholder is never run."""


class Commands(typer.core.TyperGroup):
    """Command group that escapes control characters in usage errors, and prints them as JSON if asked."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, building it if necessary."""
        found = super().get_command(ctx, cmd_name)
        make = getattr(getattr(found, "callback", None), "__wrapped__", None)
        if isinstance(make, _LazyCommand):
            found = self.commands[cmd_name] = make.build()
        return found

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write command names and short help without building the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(100)) for name, found in self.commands.items()])

    def make_context(self, info_name: Any, args: list[str], *others: Any, **more: Any) -> Any:
        """Parse the arguments before the command."""
        options = itertools.takewhile(lambda argument: argument != "--", args)
        as_json = any(option.partition("=")[0] == "--json" for option in options)
        with _usage_errors(as_json=as_json):
            context = super().make_context(info_name, args, *others, **more)
        context.meta[_AS_JSON] = as_json
        return context

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help` with a default that typer need not convert, which would import pydantic."""
        help_option = super().get_help_option(ctx)
        if help_option is not None:
            help_option.default = False
        return help_option

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's arguments and run it."""
        with _usage_errors(as_json=ctx.meta[_AS_JSON]):
            return super().invoke(ctx)


def _value(args: list[str], at: int, names: list[str]) -> str | None:
    """Return the value of the option at index `at`, None if it is not one of `names`."""
    name, equals, value = args[at].partition("=")
    if name not in names:
        return None
    return value if equals else args[at + 1] if at + 1 < len(args) else ""


@contextlib.contextmanager
def _usage_errors(*, as_json: bool) -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        message = error.message.replace("Value error, ", "")
        error.message = text.printable(text.redacted(message + _near_choice(message)))
        if as_json:
            output.say_json({"error": error.format_message(), "exit_code": error.exit_code})
        raise
    except BrokenPipeError as error:  # typer would exit with 1
        raise typer.Exit(output.report_closed_stdout(error)) from error


def _near_choice(message: str) -> str:
    """Return a hint naming the choices that resemble an invalid value."""
    found = re.search(r"'([^']*)' is not one of (.*)", message)
    near = text.nearest(found[1], re.findall(r"'([^']*)'", found[2])) if found else ""
    return f" {near[0].upper()}{near[1:]}" if near else ""
