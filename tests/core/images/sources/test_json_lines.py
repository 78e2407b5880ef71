"""Lists and labels in JSON lines."""

import json
from pathlib import Path

import pytest

from genenc_core import errors
from genenc_core.images.labels import reading
from genenc_core.images.sources import image_source, manifest

ROWS = [{"image": "a.png", "label": 3, "boxes": [[1, 2]], "good": True}, {"image": "b.png", "label": None}]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def test_a_list(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    source = image_source.open_source(str(write(tmp_path / "list.jsonl", ROWS)))
    found = manifest.write_manifest(tmp_path / "listed.manifest", source)
    assert found.read(0, 2).image_ids == ["a.png", "b.png"]
    assert found.columns == ("label", "good")
    (block,) = found.iter_columns(["column:label", "column:good"])
    assert block.to_pydict() == {"column:label": ["3", ""], "column:good": ["True", ""]}


def test_points(tmp_path: Path) -> None:
    points = [{"image": "a.png", "point": "nose", "x": 1, "y": 2.5}]
    table = reading.read_points(str(write(tmp_path / "points.ndjson", points)))
    assert (table.names, table.xy.tolist()) == (("nose",), [[[1.0, 2.5]]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"image": "a.png"}\n{"image": ', "as JSON lines: line 2"),
        ('{"image": "a.png"}\n["a.png"]\n', "line 2 is not an object"),
        ('{"image": "a.png"}\n{"image": {"bytes": "x"}}\n', "line 2 has .*bytes.* as 'image'"),
        ('{"image": "a.png"}\n{"name": "b.png"}\n', "row 2 has an empty 'image'"),
        ("\udcff", "as JSON lines: line 1"),
        ("[" * 100_000, "as JSON lines: line 1"),
        ("", "no image column"),
    ],
)
def test_damage(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "list.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(errors.InputError, match=words):
        manifest.write_manifest(tmp_path / "m", image_source.open_source(str(tmp_path / "list.jsonl")))
