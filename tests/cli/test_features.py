"""The commands on stored features: tables, JSON documents, exit codes, options in a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture
def run(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> Path:
    """A run of 6 images in 3 shards, of which one is unreadable."""
    (photos / "img_003.png").write_bytes(b"no image")
    more = ("--shard-rows", "2", "--max-failures", "1", "--batch-size", "2", "--plain")
    assert genenc("extract", photos, *tiny, "--out", tmp_path / "run", *more).code == 3
    return tmp_path / "run"


@pytest.mark.slow
def test_search(genenc: Call, run: Path, photos: Path, tmp_path: Path) -> None:
    said = genenc("search", run, "--row", "img_001.png", "--top", "2")
    headings, *rows = [line.split("\t") for line in said.out.splitlines()]
    assert (said.code, headings) == (0, ["rank", "cosine", "row", "image_id"])
    assert [row[0] for row in rows] == ["1", "2"]
    assert "images like img_001.png among 4 vectors of 'features'; left out: 1 unreadable" in said.err
    found = json.loads(genenc("search", run, "--like", photos / "img_004.png", "--trust", "--json").out)
    assert found["found"][0]["image_id"] == "img_004.png"
    assert found["found"][0]["distance"] == 0
    assert found["left_out"] == {"unreadable": 1}
    (tmp_path / "search.toml").write_text('row = "#1"\ntop = 2\n')
    assert genenc("search", run, "--config", tmp_path / "search.toml").out == said.out
    wrong = genenc("search", run, "--row", "img_009.png", "--json")
    assert (wrong.code, json.loads(wrong.out)["exit_code"]) == (2, 2)
    assert "did you mean" in wrong.err
    assert genenc("search", run, "--row", "#1", "--metric", "l3").code == 2


@pytest.mark.slow
def test_compare_trace_and_export_provenance(genenc: Call, run: Path) -> None:
    said = genenc("compare", run, run)
    assert said.code == 0
    assert "6 images in both; of the same files" in said.out
    assert "5 vectors compared, 5 of them identical; left out: 1 rows" in said.out
    assert json.loads(genenc("compare", run, run, "--json").out)["identical"] == 5
    text, document = genenc("trace", run, "--image", "#3"), genenc("trace", run, "--image", "#3", "--json")
    assert "  status           unreadable" in text.out.splitlines()
    assert json.loads(document.out)["state"]["status"] == "unreadable"
    told = json.loads(genenc("export-provenance", run, "--license", "MIT", "--json").out)
    assert (told["format"], told["sessions"], told["complete"]) == ("ro-crate", 1, True)
    assert (run / "ro-crate-metadata.json").is_file()
    plain = genenc("export-provenance", run, "--out", run.parent / "crate")
    assert plain.out.splitlines()[1].startswith("no licence is stated: --license")
    nobody = genenc("export-provenance", run, "--agent", "Ada <0000-0002-1825-0098>")
    assert (nobody.code, "its last digit does not check" in nobody.err) == (2, True)
    missing = genenc("trace", run)
    assert (missing.code, "--image is missing" in missing.err) == (2, True)


@pytest.mark.slow
def test_rerun_and_export(genenc: Call, run: Path, photos: Path, tmp_path: Path) -> None:
    said = genenc("rerun-from", run, "--out", tmp_path / "again", "--trust", "--plain")
    assert (said.code, said.out.splitlines()[0]) == (0, f"identical: all values of 3 shards are those of {run}")
    assert json.loads(genenc("rerun-from", run, "--out", tmp_path / "again", "--plain", "--json").out)["identical"]
    (photos / "img_000.png").unlink()
    refused = genenc("rerun-from", run, "--out", tmp_path / "third", "--plain")
    assert refused.code == 1
    assert "img_000.png' cannot be read" in refused.err
    assert not (tmp_path / "third").exists()
    done = genenc("export-features", run, "--out", tmp_path / "tables", "--json")
    assert json.loads(done.out)["without_features"] == {"unreadable": 1}
    again = genenc("export-features", run, "--out", tmp_path / "tables")
    assert (again.code, "exists: give a new name" in again.err) == (2, True)
    text = genenc("export-features", run, "--out", tmp_path / "arrays", "--format", "npy", "--only-ok")
    assert text.out.splitlines()[1] == "left out: 1 unreadable"
