"""The commands `report` and `preview`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture
def run(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> Path:
    """Return a run with maps."""
    said = genenc(
        "extract", photos, *tiny, "--maps", "--trust", "--batch-size", 2, "--out", tmp_path / "run", "--plain"
    )
    assert said.code == 0, said.err
    return tmp_path / "run"


def test_a_report_says_its_main_figures_and_where_it_is(genenc: Call, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = genenc("report", run, "--out", tmp_path / "page.html", "--sample", 4)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0] == "6 of 6 images stored"
    assert lines[-1].startswith(f"written: {tmp_path / 'page.html'} (")
    found = json.loads(genenc("report", run, "--out", tmp_path / "page.html", "--json").out)
    assert (found["ok"], found["written"]) == (6, str(tmp_path / "page.html"))
    assert [each["product"] for each in found["values"]] == ["features"]


def test_without_an_out_it_is_named_after_the_run(
    genenc: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert genenc("report", f"{run}/").code == 0
    assert (tmp_path / "run-report.html").exists()


def test_a_config_file_and_wrong_usage(genenc: Call, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config = tmp_path / "report.toml"
    config.write_text('out = "page.html"\nsample = 3\n')
    assert genenc("report", run, "--config", config).code == 0
    assert (tmp_path / "page.html").exists()
    said = genenc("report", run, "--out", run / "page.html")
    assert said.code == 2
    assert "where nothing may change" in said.err
    assert genenc("report", tmp_path / "none").code == 2
    assert genenc("report", run, "--projection", "tsne").code == 2


def test_without_matplotlib_the_extra_is_named(
    genenc: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = genenc("report", run, "--out", tmp_path / "page.html")
    assert said.code == 2
    assert "pip install 'genenc[report]'" in said.err
    assert not (tmp_path / "page.html").exists()
    assert genenc("preview", run, "--row", 0, "--out", tmp_path / "look").code == 0


def test_previews_are_written_beside_the_run(genenc: Call, run: Path, tmp_path: Path) -> None:
    said = genenc("preview", run, "--image", "img_002.png", "--at", "30,20", "--out", tmp_path / "look")
    assert said.code == 0, said.err
    names = ["channels.png", "image.png", "pca.png", "similarity-30-20.png"]
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == names
    assert said.out.startswith("row 2: img_002.png")
    found = json.loads(genenc("preview", run, "--row", 2, "--out", tmp_path / "look", "--json").out)
    assert found["notes"] == ["no point is in view: give --at x,y to compare the cell at a place"]
    assert genenc("preview", run).code == 2
    assert "where nothing may change" in genenc("preview", run, "--row", 0, "--out", run / "look").err
