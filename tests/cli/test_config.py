"""`extract --config`: every option from a file, paths that start at the file, flags on top."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from genenc_core import errors
from genenc_core.cli import usage
from genenc_core.run.parameters import ExtractParameters

Call = Callable[..., Any]
FIELDS = ExtractParameters.model_fields


def _job(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "job.toml"
    config.write_text("\n".join(lines) + "\n")
    return config


def test_a_config_alone_is_a_whole_command_from_any_folder(
    genenc: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _job(
        photos.parent / "jobs",
        'images = "../photos"\nout = "run"\nmodel = "tiny_models:conv"\nweights = "random:0"',
        'image_size = 32\ndevice = "cpu"\nplain = true\njson = true',
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    said = genenc("extract", "--config", config, "--trust")
    assert said.code == 0, said.err
    assert json.loads(said.out)["ok"] == 6
    assert (photos.parent / "jobs" / "run" / "features.zarr").is_dir()
    assert not any(elsewhere.iterdir())
    assert not genenc("extract", "--config", config, "--trust", "--no-json").out.startswith("{")


def test_brackets_of_the_configs_folder_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "s [1]"
    named = usage.merge_config(_job(folder, 'images = "photos/*.png"'), {"model": "m", "out": "o"}, FIELDS)
    assert named["images"] == f"{tmp_path}/s [[]1]/photos/*.png"


@pytest.mark.parametrize(
    ("line", "name", "right"),
    [
        ('images = "a/*.png"', "images", "{}/a/*.png"),
        ('images = "/abs/a"', "images", "/abs/a"),
        ('images = "~/a"', "images", "{home}/a"),
        ('out = "s3://bucket/run"', "out", "s3://bucket/run"),
        ('points = "p.csv"', "points", "{}/p.csv"),
        ("out = 1979", "out", "{}/1979"),
        ('models = ["specs", "/abs"]', "models", ["{}/specs", "/abs"]),
        ('weights = "w.safetensors"', "weights", "{}/w.safetensors"),
        ('weights = "pretrained:IMAGENET1K_V1"', "weights", "pretrained:IMAGENET1K_V1"),
        ('weights = "pretrained"', "weights", "pretrained"),
        ('weights = "random:3"', "weights", "random:3"),
        ('model = "m_spec.json"', "model", "{}/m_spec.json"),
        ('model = "timm/resnet18.a1_in1k"', "model", "timm/resnet18.a1_in1k"),
        ('model = "resnet18"', "model", "resnet18"),
        ("limit = 3", "limit", 3),
    ],
)
def test_what_is_a_path_starts_at_the_file(
    line: str, name: str, right: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = _job(tmp_path / "jobs", line)

    def filled(text: Any) -> Any:
        return text.format(config.parent, home="/home/me") if isinstance(text, str) else text

    wanted = [filled(item) for item in right] if isinstance(right, list) else filled(right)
    rest = {key: value for key, value in {"images": "i", "model": "m", "out": "o"}.items() if key != name}
    assert usage.merge_config(config, rest, FIELDS)[name] == wanted


def test_flags_override_the_file_and_start_at_the_working_directory(tmp_path: Path) -> None:
    config = _job(tmp_path, 'images = "a"\nmodel = "m"\nout = "o"\nplain = true\nmaps = true')
    flags = {"images": "b", "out": "r", "plain": False, "maps": False}
    found = usage.merge_config(config, flags, FIELDS)
    assert {name: found[name] for name in flags} == flags
    assert found["model"] == "m"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("job.yaml", "model: resnet18\n", "TOML, not YAML"),
        ("job.json", '{"model": "resnet18"}', "TOML, not JSON"),
        ("job.toml", "plane = true", "did you mean 'plain'"),
        ("job.toml", "image = 'a'", "did you mean 'images'"),
        ("job.toml", 'plain = "yes"', "should be true or false"),
        ("job.toml", "image_size = 3\nimage-size = 4", "sets one option twice"),
        ("job.toml", 'model = "m"\nout = "o"', "IMAGES is missing"),
        ("job.toml", 'images = "i"\nout = "o"', "--model is missing"),
    ],
)
def test_a_wrong_file_is_refused_with_the_remedy(name: str, text: str, words: str, tmp_path: Path) -> None:
    config = tmp_path / name
    config.write_text(text)
    with pytest.raises(errors.InputError, match=words):
        usage.merge_config(config, {}, FIELDS)


@pytest.mark.parametrize("name", sorted(set(ExtractParameters.model_fields) - {"images", "model", "out"}))
def test_true_is_a_value_of_flags_alone(name: str) -> None:
    given = {"images": "photos", "model": "resnet18", "out": "run", name: True}
    flag = bool in (annotation := ExtractParameters.model_fields[name].annotation, *get_args(annotation))
    if flag:
        assert getattr(ExtractParameters.model_validate(given), name) is True
        return
    with pytest.raises(ValueError, match=name):
        ExtractParameters.model_validate(given)


@pytest.mark.parametrize(
    "wrong", ["no_such_option = 1", "model = ", "json = true # twice", "trust = true", "limit = 'three'", "plain = 3"]
)
def test_a_wrong_file_that_asks_for_json_is_answered_in_json(wrong: str, genenc: Call, tmp_path: Path) -> None:
    config = _job(tmp_path, "json = true", 'images = "x"\nout = "run"\nmodel = "resnet18"', wrong)
    said = genenc("extract", "--config", config)
    assert (said.code, json.loads(said.out)["exit_code"]) == (2, 2)
    assert genenc("extract", "--config", config, "--no-json").out == ""
    config.write_text(f'model = "resnet18"\n{wrong.removeprefix("json = true")}\n')
    assert genenc("extract", "--config", config).out == ""


def test_a_glob_that_the_shell_expanded_is_refused() -> None:
    usage.refuse_more_images("a.png", [])
    with pytest.raises(errors.InputError, match=r"got 3: 'a\.png', 'b\.png', \.\.\..*Quote a glob"):
        usage.refuse_more_images("a.png", ["b.png", "c.png"])
