"""A call that is wrong in any way prints one JSON document on standard output where --json is given."""

import json
from collections.abc import Callable
from typing import Any, Literal, get_origin

import pytest
import typer.main

from genenc_core.cli import app

Call = Callable[..., Any]
GROUP: Any = typer.main.get_command(app.build_app())
WITH_JSON = {
    name: command
    for name, command in ((name, GROUP.get_command(None, name)) for name in GROUP.list_commands(None))
    if any("--json" in parameter.opts for parameter in command.params)
}


def wrong_calls() -> list[tuple[str, ...]]:
    """Return calls that the parser refuses: options unknown, without their value, of a wrong choice or type, twice."""
    calls: list[tuple[str, ...]] = [("--json",), ("no-such-command", "--json")]
    for name, command in WITH_JSON.items():
        calls.append((name, "--json", "--no-such-option"))
        calls.append((name, "--json=maybe"))
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        if any(parameter.required for parameter in arguments):
            calls.append((name, "--json"))
        given = ["x"] * len(arguments)
        if name != "extract":  # which counts them itself, to name the glob that a shell expanded
            calls.append((name, *given, "too-many", "--json"))
        for option in command.params:
            if option.param_type_name != "option" or option.is_flag:
                continue
            calls.append((name, "--json", option.opts[0]))
            kind = option.type_descriptor.annotation
            if get_origin(kind) is Literal or kind in (int, float):
                calls.append((name, "--json", *given, option.opts[0], "nonsense"))
            if not option.multiple:
                calls.append((name, "--json", *given, option.opts[0], "1", option.opts[0], "2"))
    return calls


def test_commands_with_json_are_there() -> None:
    assert {"extract", "resume", "status", "verify", "export", "models", "info"} <= set(WITH_JSON)
    assert any("nonsense" in call for call in wrong_calls())


@pytest.mark.parametrize("command", [*WITH_JSON, None])
def test_a_wrong_call_prints_one_json_document(command: str | None, genenc: Call) -> None:
    """Every wrong call of a command, or those without one."""
    calls = [call for call in wrong_calls() if (call[0] if call[0] in WITH_JSON else None) == command]
    assert len(calls) > 1
    for call in calls:
        said = genenc(*call)
        found = json.loads(said.out)
        assert (said.code, found["exit_code"]) == (2, 2), call
        assert found["error"].splitlines()[0] in " ".join(said.err.split()), call


def test_without_json_standard_output_stays_empty(genenc: Call) -> None:
    for arguments in (("extract", "--fit", "nonsense"), ("info", "--", "--json", "more"), ("status",)):
        said = genenc(*arguments)
        assert (said.code, said.out) == (2, "")
