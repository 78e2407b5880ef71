"""Arguments for parts that are named: gathered by their prefix, and compared with what a constructor takes."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from genenc_core import errors

Options = dict[str, Any]


def split(arguments: Mapping[str, Any], words: Iterable[str]) -> tuple[dict[str, Options], Options]:
    """Return the arguments under each word (`word_x` and `word_kwargs` together), and the others.

    Raises:
        InputError: the same argument both ways.
    """
    if not isinstance(arguments, Mapping):
        raise errors.InputError(f"{arguments!r} must be names and values.")
    found: dict[str, Options] = {}
    left = dict(arguments)
    for word in words:
        together = left.pop(f"{word}_kwargs", None) or {}
        if not isinstance(together, Mapping):
            raise errors.InputError(f"{word}_kwargs {together!r} must be names and values.")
        single = {key.removeprefix(f"{word}_"): left.pop(key) for key in list(left) if key.startswith(f"{word}_")}
        both = sorted(set(together) & set(single))
        if both:
            raise errors.InputError(
                f"{word}_{both[0]} is given twice: as {word}_{both[0]} and in {word}_kwargs. Leave one of them out."
            )
        found[word] = {**together, **single}
    return found, left


def takes(signature: inspect.Signature, name: str) -> bool:
    """Tell whether a constructor takes the keyword."""
    return name in signature.parameters or any(item.kind is item.VAR_KEYWORD for item in signature.parameters.values())


def check(who: str, prefix: str, signature: inspect.Signature | None, given: Mapping[str, Any]) -> None:
    """Compare arguments with a constructor's parameters; its first positional one (the channels) is not among them.

    Raises:
        InputError: one that it does not take, or lacks; the known ones are named.
    """
    if signature is None:
        return
    parameters = dict(signature.parameters)
    keyword_only = {name: item for name, item in parameters.items() if item.kind is item.KEYWORD_ONLY}
    first = next(iter(parameters), None)
    if not who.startswith("backbone") and first is not None and first not in keyword_only:
        del parameters[first]
    if any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
        return
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        known = ", ".join(f"{prefix}{name}" for name in parameters) or "none"
        raise errors.InputError(
            f"argument {prefix}{unknown[0]} = {given[unknown[0]]!r} is not used: {who} does not take it. It takes: "
            f"{known}."
        )
    missing = [
        name
        for name, item in parameters.items()
        if item.default is item.empty and item.kind is not item.VAR_POSITIONAL and name not in given
    ]
    if missing:
        raise errors.InputError(f"{who} needs {prefix}{missing[0]}.")
