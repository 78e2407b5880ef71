"""What a run records of its environment."""

import importlib.metadata
from pathlib import Path

import pytest

from genenc_core.system import environment


def test_packages_are_those_that_a_full_parse_of_their_metadata_names() -> None:
    read = [item.metadata for item in importlib.metadata.distributions()]
    # Of two by one name the first on the path is imported; setuptools brings packages of its own that come last.
    full = {(item["Name"] or "").lower(): item["Version"] for item in reversed(read)}
    assert environment.packages() == dict(sorted((name, version) for name, version in full.items() if name))


def test_of_two_by_one_name_that_which_is_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, version in (("second", "3.9"), ("first", "3.10")):
        folder = tmp_path / place / f"twice-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Twice\nVersion: {version}\n")
        monkeypatch.syspath_prepend(tmp_path / place)
    assert environment.packages()["twice"] == "3.10"


def test_description_changes_no_name_or_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "odd-1.0.dist-info"
    folder.mkdir()
    text = "Metadata-Version: 2.1\nName: Odd\nVersion: 1.0\nSummary: x\n Version: 3\n\nName: other\nVersion: 2.0\n"
    (folder / "METADATA").write_text(text)
    (tmp_path / "bare-2.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    found = environment.packages()
    assert found["odd"] == "1.0"
    assert "other" not in found
    assert "" not in found
