"""`genenc doctor`: each fault is told with its remedy, and decides the exit code."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genenc_core.cli import checks

Call = Callable[..., Any]


def test_a_machine_that_works(genenc: Call, tmp_path: Path) -> None:
    said = genenc("doctor", tmp_path / "new" / "run", "--json")
    found = json.loads(said.out)
    assert said.code == 0, found
    assert found["ok"]
    names = [check["name"] for check in found["checks"]]
    assert names[:3] == ["Python", "packages", "devices"]
    assert names[-1] == "place for runs"
    assert not (tmp_path / "new").exists()


def test_packages_that_do_not_fit_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"prefect": "3.9.1", "fastapi": "0.165.0"}
    monkeypatch.setattr(checks, "_installed", installed.get)
    needed = ["prefect<4,>=3.8", "fastapi<0.151", "zarr>=3.1", 'timm>=1; extra == "timm"']
    fastapi, zarr = checks._wrong_packages(needed)
    assert (fastapi.state, fastapi.found) == ("failed", "0.165.0, genenc needs fastapi<0.151")
    assert fastapi.remedy == "pip install 'fastapi<0.151'"
    assert (zarr.name, zarr.found) == ("zarr", "not installed, genenc needs zarr>=3.1")


def test_a_place_that_cannot_be_written_fails_the_check(genenc: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = genenc("doctor", tmp_path / "file" / "run")
    assert said.code == 1
    assert f"failed  place for runs: {tmp_path / 'file' / 'run'}: " in said.out
    assert "        -> give a folder that you may write to" in said.out


def test_what_is_no_place_on_s3_is_told(genenc: Call) -> None:
    said = genenc("doctor", "s3://bucket")
    assert said.code == 1
    assert "failed  place for runs: s3://bucket: " in said.out
    assert "-> see genenc_core/store/S3.md" in said.out


def test_decoders_that_cannot_be_imported_are_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    found = checks.decoders()
    assert (found.state, found.remedy) == ("failed", "pip install --force-reinstall pillow imagecodecs")
    assert "imagecodecs" in found.found


def test_few_open_files_are_a_note(genenc: Call) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        found = checks.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (found.state, found.found, found.remedy) == ("note", "at most 512", "ulimit -n 1024")


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(checks.tempfile, "gettempdir", fail)
    assert checks.temporary_folder().remedy == "set TMPDIR to a folder that can be written"
