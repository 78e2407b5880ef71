"""What `verify` advises fits what is damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture
def run(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> Path:
    assert genenc("extract", photos, *tiny, "--out", tmp_path / "run", "--shard-rows", 4).code == 0
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images.parquet", "model_spec.json", "provenance/parameters.json"])
def test_a_file_that_says_what_the_run_is(genenc: Call, run: Path, name: str) -> None:
    path = run / name
    path.write_bytes(path.read_bytes()[:-1])
    said = genenc("verify", run)
    assert said.code == 1
    assert f"{name}: has" in said.out
    assert "from a copy" in said.out
    assert "damaged shards" not in said.out
    path.unlink()
    (run / "features.zarr/status/c.1").unlink()
    said = genenc("verify", run)
    assert said.code == 1
    assert f"{name}: missing" in said.out
    assert "status/c.1: missing" in said.out
    assert "to restore damaged shards: genenc verify" in said.out
    assert "from a copy" in said.out
    assert not json.loads(genenc("verify", run, "--json").out)["ok"]


@pytest.mark.slow
def test_the_readme_is_written_anew(genenc: Call, run: Path) -> None:
    path = run / "README.md"
    whole = path.read_bytes()
    for change in (whole + b"my note", None):
        path.unlink() if change is None else path.write_bytes(change)
        out = genenc("verify", run).out
        assert "to restore what can be: genenc verify" in out
        assert "copy" not in out
        said = genenc("verify", run, "--repair")
        assert said.code == 0, said.out
        assert "restored: README.md" in said.out
        assert path.read_bytes() == whole
    assert [each.read_bytes() for each in run.glob("_txn/set-aside/*/README.md")] == [whole + b"my note"]
    assert genenc("verify", run).code == 0


@pytest.mark.slow
def test_other_damage_needs_no_resume(genenc: Call, run: Path) -> None:
    (run / "features.zarr/stranger").write_text("mine")
    out = genenc("verify", run).out
    assert "to restore what can be: genenc verify" in out
    assert "resume" not in out


@pytest.mark.slow
def test_commit_records_that_were_deleted(genenc: Call, run: Path) -> None:
    shutil.rmtree(run / "_txn/commits")
    for command in ("status", "verify", "resume"):
        said = genenc(command, run)
        assert said.code == 1
        assert "create an empty folder there" in said.err
        assert "disk" not in said.err
    (run / "_txn/commits").mkdir()
    assert genenc("verify", run, "--repair").code == 0
    assert genenc("resume", run, "--shards", "pending").code == 0
    assert "6 of 6 images" in genenc("status", run).out
    assert genenc("verify", run, "--content").code == 0
