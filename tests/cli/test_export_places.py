"""Where `genenc export` and `genenc extract` are told to write: refused in one sentence before a model is built."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
BAD_NAME = os.fsdecode(b"caf\xe9")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one of each kind."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "folder").mkdir()
    (place / "file").write_text("mine")
    (place / "nowhere").symlink_to("gone")
    (place / "to_file").symlink_to("file")
    (place / "to_folder").symlink_to("folder")
    (place / "itself").symlink_to("itself")
    os.mkfifo(place / "pipe")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("", "--out is empty"),
        ("file", "not a folder: give a folder"),
        ("pipe", "not a folder"),
        ("file/deep/er", "file' is not a writable folder"),
        ("nowhere", "a link that does not lead to a folder"),
        ("nowhere/x", "is not a writable folder"),
        ("to_file", "a link that does not lead to a folder"),
        ("itself", "a link that does not lead to a folder"),
        ("new.pt", "looks like a file name.*'new'"),
        ("deep/new.ONNX", "looks like a file name"),
        ("s3://bucket/models", "is a URL"),
        (BAD_NAME, "is not valid UTF-8"),
        ("/dev/null", "not a folder"),
    ],
)
def test_no_place_for_artifacts(genenc: Call, place: Path, out: str, said: str) -> None:
    before = sorted(place.rglob("*"))
    refused = genenc("export", "no_such_model", "--out", out, "--plain")
    assert refused.code == 2
    lines = refused.err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(said, lines[0]), lines[0]
    assert sorted(place.rglob("*")) == before


def test_a_folder_without_the_right_to_write(genenc: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    refused = genenc("export", "no_such_model", "--out", "folder/new", "--plain")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is not a writable folder" in refused.err
    assert not (place / "folder/new").exists()


@pytest.mark.parametrize("out", ["folder", "to_folder", "deep/er", "models.v1"])
def test_places_for_artifacts(genenc: Call, place: Path, out: str) -> None:
    """A folder, there or not, also behind a link; a link at an artifact's name is replaced, not followed."""
    mine = place / "mine"
    mine.write_text("mine")
    spec = place / out / "tiny_models_conv_torchscript_spec.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.symlink_to(mine)
    given = ("tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--batch-max", "2", "--plain")
    done = genenc("export", *given, "--out", out)
    assert done.code == 0, done.err
    assert spec.is_file()
    assert not spec.is_symlink()
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("option", ["--out", "--points", "--weights"])
def test_extract_says_which_path_is_not_utf8(genenc: Call, photos: Path, tiny: list[str], option: str) -> None:
    said = genenc("extract", photos, *tiny[:2], *(() if option == "--out" else ("--out", "run")), option, BAD_NAME)
    assert said.code == 2
    assert f"{option} 'caf\\udce9' is not valid UTF-8" in said.err
    assert said.err.count("\n") == 1
