"""Command line options generated from pydantic fields."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo

from genenc_core.cli import usage
from genenc_core.run import options

OFTEN = "Most used"


def generated(
    fields: Mapping[str, FieldInfo],
    *,
    arguments: Sequence[str] = (),
    names: Mapping[str, str] = types.MappingProxyType({}),
    usually: str | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command with one option per field; it receives them as `values`, None if not given.

    `arguments` are positional, in this order, shown under `names` where these differ. `usually` replaces the defaults
    shown in the help.
    """

    def decorate(work: Callable[..., None]) -> Callable[..., None]:
        own = [each for each in inspect.signature(work).parameters.values() if each.name != "values"]
        order = [*arguments, *(name for name in fields if name not in arguments)]
        made = [_parameter(name, fields[name], name in arguments, usually, names.get(name)) for name in order]
        # Arguments first, the command's own options last.
        context = [each for each in own if each.annotation is typer.Context]
        others = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own if each not in context]

        def command(**given: Any) -> None:
            named = {each.name: given[each.name] for each in own}
            work(**named, values={name: _value(field, given[name]) for name, field in fields.items()})

        command.__name__, command.__doc__ = work.__name__, work.__doc__
        command.__annotations__ = {}
        signed: Any = command
        signed.__signature__ = inspect.Signature([*context, *made, *others])
        return command

    return decorate


def _parameter(
    name: str, field: FieldInfo, positional: bool, usually: str | None, metavar: str | None
) -> inspect.Parameter:
    how, kind = options.shown(field), _kind(field.annotation)
    if positional:
        required = field.is_required() and name != "images"
        annotation: Any = Annotated[kind if required else kind | None, typer.Argument(help=how.help, metavar=metavar)]
        default: Any = inspect.Parameter.empty if required else None
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
    flag = how.flag or name.replace("_", "-")
    switch = kind is bool and not how.negatable
    shown = None if switch else usually or options.usually(field)
    made = usage.option(
        f"--{flag}/--no-{flag}" if how.negatable else f"--{flag}",
        help=how.help,
        group=OFTEN if how.often and usually is None else how.group,
        default=shown or "",
        metavar=how.metavar,
        values=how.values,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind | None, made],
        default=False if switch else None,
    )


def _kind(annotation: Any) -> Any:
    """Return the type that typer parses an option as: str if several types are allowed."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        others = [each for each in typing.get_args(annotation) if each is not type(None)]
        return _kind(others[0]) if len(others) == 1 else str
    if typing.get_origin(annotation) is tuple:
        return list[str]
    if typing.get_origin(annotation) is Literal:
        return Literal[tuple(value for value in typing.get_args(annotation) if value != "")]  # "" is the form's
    return annotation


def _value(field: FieldInfo, given: Any) -> Any:
    """Return an option's value, None if it was not given."""
    if isinstance(given, list):
        return tuple(given) or None
    return None if given is False and not options.shown(field).negatable else given
