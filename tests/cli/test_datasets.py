"""Commands on datasets: an update, what is printed of versions, tags, compaction, pruning, wrong use."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
MODEL = ("--model", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--device", "cpu", "--plain")


@pytest.fixture
def dataset(genenc: Call, photos: Path, tmp_path: Path) -> Path:
    """A dataset with two versions: 6 images, then 7 of which one is unreadable."""
    place = tmp_path / "dataset"
    assert genenc("update", place, photos, *MODEL).code == 0
    (photos / "img_006.png").write_bytes(b"no image")
    assert genenc("update", place, "--plain").code == 3
    return place


@pytest.mark.slow
def test_an_update_says_what_it_did(genenc: Call, photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "dataset"
    said = genenc("update", place, photos, *MODEL)
    assert said.out.endswith(f"{place}: version 1, 6 images in 1 part (6 new), 0 unreadable\n")
    assert genenc("update", place, "--plain").out == f"{place}: version 1, 6 images; nothing new\n"
    shutil.copy(photos / "img_000.png", photos / "new.png")
    found = json.loads(genenc("update", place, "--plain", "--json").out)
    assert (found["version"], found["before"], found["counts"]["new"], found["exit_code"]) == (2, 1, 1, 0)


@pytest.mark.slow
def test_versions_tags_and_differences(genenc: Call, dataset: Path) -> None:
    assert genenc("tag", dataset, "paper", "--version", "1").out == "paper: version 1\n"
    lines = genenc("versions", dataset).out.splitlines()
    assert [line.split("\t")[:4] for line in lines[1:]] == [["1", "6", "0", "6 new"], ["2", "7", "1", "1 new"]]
    assert lines[1].endswith("\tpaper")
    assert [line["rows"] for line in json.loads(genenc("versions", dataset, "--json").out)] == [6, 7]
    said = genenc("diff", dataset, "paper", "2").out
    assert said.splitlines() == ["version 1 -> 2: 6 -> 7 images", "  1 added: img_006.png"]
    assert genenc("tag", dataset, "paper").out == "paper: version 2 (it was version 1)\n"
    assert genenc("tag", dataset, "paper", "--delete").out == "paper: removed (it was version 2)\n"
    assert genenc("diff", dataset, "paper", "2").code == 2


@pytest.mark.slow
def test_compaction_and_pruning(genenc: Call, dataset: Path) -> None:
    said = genenc("compact", dataset)
    assert said.code == 0
    assert said.out.splitlines()[-1] == "version 3, 1 part"
    assert genenc("compact", dataset).out.splitlines()[-1] == "nothing to join"
    would = genenc("prune", dataset, "--keep", "1", "--dry-run").out
    assert "parts/p000001" in would
    assert (dataset / "parts" / "p000001").exists()
    assert genenc("prune", dataset, "--keep", "1").out.endswith("versions that open: 3\n")
    assert not (dataset / "parts" / "p000001").exists()
    assert "6 new, pruned" in genenc("versions", dataset).out
    assert genenc("verify", dataset, "--content").code == 0
    assert genenc("update", dataset, "--plain").out.endswith("version 3, 7 images, 1 unreadable; nothing new\n")


@pytest.mark.slow
def test_status_and_verify_know_datasets(genenc: Call, dataset: Path) -> None:
    said = genenc("status", dataset)
    assert (said.code, said.out.splitlines()[0]) == (3, f"{dataset}: version 2, 7 images in 2 parts, 1 unreadable")
    assert json.loads(genenc("status", dataset, "--json").out)["counts"]["rows"] == 7
    assert genenc("verify", dataset).out == f"{dataset}: intact; 2 versions, 2 parts checked\n"
    victim = next((dataset / "parts" / "p000002" / "features.zarr" / "features").glob("c.*"))
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    said = genenc("verify", dataset)
    assert said.code == 1
    assert "p000002" in said.out
    assert "restore it from a copy" in genenc("verify", dataset, "--repair").err
    for command in (("verify", "--repair"), ("resume",)):
        said = genenc(command[0], dataset / "parts" / "p000002", *command[1:])
        assert said.code == 2
        assert "whose versions must not change: restore a damaged part from a copy" in said.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("versions", "photos"), "is not a dataset: give a folder that was made with `genenc update`"),
        (("versions", "run"), "is not a dataset: it is a single run; genenc status run shows it"),
        (("update", "run", "photos", "--model", "resnet18"), "'run' holds a run: give a new folder"),
        (("update", "dataset"), "IMAGES is missing: 'dataset' is a new dataset"),
        (("update", "dataset", "photos"), "--model is missing"),
        (("update", "dataset", "photos", "--by", "name"), "'name' is not one of 'stat', 'content'"),
        (("update", "dataset", "photos", "more"), "expected one IMAGES argument"),
        (("prune", "dataset"), "--keep"),
    ],
)
def test_wrong_use_is_answered(
    genenc: Call, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(photos.parent)
    if "run" in arguments:
        assert genenc("extract", "photos", *MODEL, "--out", "run").code == 0
    more = ("--plain",) if arguments[0] == "update" else ()
    said = genenc(*arguments, *more)
    assert said.code == 2
    assert re.search(words, said.err.replace("\n", " ")), said.err
