"""What `--help` shows: every option in a group, with its default and its choices, quickly."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from genenc_core import choices
from genenc_core.bench import suites
from genenc_core.cli import app
from genenc_core.cli import options as options_module
from genenc_core.run import options as run_options
from genenc_core.run import parameters

Call = Callable[..., Any]
GROUP: Any = typer.main.get_command(app.build_app())
COMMANDS: dict[str, Any] = {name: GROUP.get_command(None, name) for name in GROUP.list_commands(None)}
GROUPS = {choices.INPUT, choices.POINTS, choices.MODEL, choices.SIZES, choices.PRODUCTS, choices.STORE, choices.RUN}
GROUPS |= {choices.GENERAL, choices.ARTIFACTS, choices.SERVER, options_module.OFTEN, "Checks", "Measurements"}
NO_DEFAULT = {
    "keep",
    "notify",
    "model",
    "models",
    "out",
    "points",
    "regions",
    "points_columns",
    "config",
    "output_shape",
    "image_column",
    "image",
    "variants",
}
"""Options that are required, or without which nothing takes their place."""
ROOT = Path(__file__).parents[2]


def options() -> list[tuple[str, Any]]:
    return [
        (name, parameter)
        for name, command in COMMANDS.items()
        for parameter in command.params
        if parameter.param_type_name == "option"
    ]


def help_of(name: str) -> str:
    """Return a command's help, its lines joined."""
    command = COMMANDS[name]
    return " ".join(command.get_help(typer.Context(command, info_name=name)).split())


def record(name: str, parameter: Any) -> tuple[str, str]:
    """Return an option's two columns."""
    found: tuple[str, str] = parameter.get_help_record(typer.Context(COMMANDS[name], info_name=name))
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_group_a_help_text_and_its_default(command: str) -> None:
    for option in (option for name, option in options() if name == command):
        shown = record(command, option)[1]
        assert len(option.help) > 5, option.name
        assert option.rich_help_panel in GROUPS, option.name
        is_flag = option.is_flag and not option.secondary_opts
        assert is_flag or option.name in NO_DEFAULT or "[default: " in shown, shown
        assert shown.count("default: ") <= 1, shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_groups_and_ends_with_an_example_and_the_guide(name: str) -> None:
    text = COMMANDS[name].get_help(typer.Context(COMMANDS[name], info_name=name))
    sections = re.findall(r"^([A-Z][a-z ]+):$", text, re.MULTILINE)
    used = {option.rich_help_panel for command, option in options() if command == name}
    assert used <= set(sections) <= GROUPS | {"Arguments"}
    assert len(set(sections)) == len(sections)
    *_, example, guide = text.splitlines()
    assert example.strip().startswith(f"Example: genenc {name}")
    assert guide.strip().startswith("Guide: ")
    for path in guide.strip().removeprefix("Guide: ").split(", "):
        assert (ROOT / path).suffix == ".md"
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_are_valid_calls(name: str) -> None:
    example = COMMANDS[name].epilog.split("Example: ")[1].splitlines()[0]
    COMMANDS[name].make_context(name, shlex.split(example)[2:])


@pytest.mark.parametrize(
    ("name", "model"), [("extract", parameters.ExtractParameters), ("export", parameters.ExportParameters)]
)
def test_shown_defaults_are_those_of_the_parameters(name: str, model: Any) -> None:
    shown = {option.name: record(name, option)[1] for command, option in options() if command == name}
    for field, info in model.model_fields.items():
        if field not in shown or info.is_required() or info.default in (None, (), False):
            continue
        assert f"[default: {run_options.usually(info)}]" in shown[field]


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("extract", "--fit", get_args(choices.Fit)),
        ("extract", "--decode", get_args(choices.Decoding)),
        ("extract", "--precision", get_args(choices.Precision)),
        ("extract", "--backend", get_args(choices.Backend)),
        ("extract", "--tile-blend", get_args(choices.Blend)),
        ("extract", "--dtype", get_args(choices.StoredType)),
        ("models", "--source", get_args(choices.ListedSource)),
        ("export", "--formats", get_args(choices.ExportFormat)),
        ("bench", "--suite", ("all", *suites.SUITES)),
    ],
)
def test_choices_are_shown(command: str, option: str, values: tuple[str, ...]) -> None:
    assert f"{option} <{'|'.join(values)}>" in help_of(command).replace("[", "<").replace("]", ">")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("extract", "photos", "--fit", "padd"), "Did you mean 'pad'?"),
        (("extract", "photos", "--precision", "float23"), "Did you mean 'float32' or 'float16' or 'bfloat16'?"),
        (("extract", "photos", "--backend", "Eager"), "Did you mean 'eager'?"),
        (("extract", "photos", "--tile-blend", "cosin"), "Did you mean 'cosine'?"),
        (("extract", "photos", "--dtype", "q4"), "is not one of 'float32', 'float16', 'int8', 'uint8'"),
        (("models", "--source", "tim"), "Did you mean 'timm'?"),
        (("extract", "photos", "--presicion", "float32"), "--precision"),
        (("extarct", "photos"), "extract"),
    ],
)
def test_a_wrong_choice_names_the_nearest(genenc: Call, arguments: tuple[str, ...], words: str) -> None:
    said = genenc(*arguments)
    assert said.code == 2
    assert words in said.err


FROM_FIELDS = (
    *("export", "extract", "inspect", "preview", "probe", "report", "resume", "update", "info", "models"),
    *("search", "compare", "trace", "rerun-from", "export-features", "export-provenance"),
)
"""Commands whose options are made from pydantic's fields."""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = ["torch", "prefect", "zarr", "pyarrow", "numpy", *(["pydantic"] if arguments[0] not in FROM_FIELDS else [])]
    code = (
        "import sys\nfrom genenc_flows import entry\nsys.argv = ['genenc', *sys.argv[1:]]\n"
        "try: entry.main()\nexcept SystemExit as leaving: assert not leaving.code, leaving.code\n"
        f"assert not [name for name in {heavy} if name in sys.modules]\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_options_used_most_come_first() -> None:
    shown = help_of("extract")
    assert 0 < shown.index(" Arguments: ") < shown.index(f" {options_module.OFTEN}: ") < shown.index(" Input: ")
    often = [option.name for command, option in options() if command == "extract"][:11]
    assert often == [
        name
        for name, field in parameters.ExtractParameters.model_fields.items()
        if run_options.shown(field).often and name != "images"
    ]
