"""Of an option that takes one value and is given twice, never the last one alone counts; of every command."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from genenc_core.cli import app

Call = Callable[..., Any]


def commands() -> Iterator[tuple[str, Any]]:
    group: Any = typer.main.get_command(app.build_app())
    for name in group.list_commands(None):
        for parameter in group.get_command(None, name).params:
            if parameter.param_type_name == "option":
                yield name, parameter


ONCE = [(name, each.opts[0]) for name, each in commands() if not each.is_flag and not each.multiple]
OPPOSITES = [(name, each.opts[0], each.secondary_opts[0]) for name, each in commands() if each.secondary_opts]


def test_the_parser_is_read() -> None:
    assert {"extract", "export", "resume", "models", "bench", "schema", "demo"} <= {name for name, _ in ONCE}
    assert ("extract", "--maps", "--no-maps") in OPPOSITES


@pytest.mark.parametrize("command", sorted({command for command, _ in ONCE}))
@pytest.mark.parametrize("joined", [False, True])
def test_an_option_of_one_value_is_refused(genenc: Call, command: str, joined: bool) -> None:
    for option in (option for name, option in ONCE if name == command):
        again = [f"{option}=two"] if joined else [option, "two"]
        said = genenc(command, "SUBJECT", option, "one", *again)
        assert said.code == 2, option
        assert f"{option} is given more than once, as 'one' and 'two'; give it once" in " ".join(said.err.split())


@pytest.mark.parametrize(("command", "option", "opposite"), OPPOSITES)
def test_a_flag_and_its_opposite_are_refused(genenc: Call, command: str, option: str, opposite: str) -> None:
    said = genenc(command, opposite, option)
    assert said.code == 2
    assert f"{option} and {opposite} contradict each other" in " ".join(said.err.split())
