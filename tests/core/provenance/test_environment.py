"""What a run records of its environment."""

import importlib.metadata
from pathlib import Path

import pytest

from genenc_core.provenance import environment


def test_packages_are_those_that_a_full_parse_of_their_metadata_names() -> None:
    read = [item.metadata for item in importlib.metadata.distributions()]
    full = {(item["Name"] or "").lower(): item["Version"] for item in read}
    assert environment.packages() == dict(sorted((name, version) for name, version in full.items() if name))


def test_a_description_that_speaks_of_names_and_versions_changes_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
