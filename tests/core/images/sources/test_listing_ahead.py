"""What the listing does in threads and in blocks: the same rows, and an end within a moment."""

import contextlib
import csv
import io
import itertools
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from genenc_core import errors
from genenc_core.images.sources import folders, image_source, listing, manifest, manifest_rows, tables

NAMES = ("a", "b", "b.c", ".h", "é")
FILES = ("1.png", "2.JPG", "3.txt", "png", ".4.png", "._5.png", os.fsdecode(b"\xff.png"), "Thumbs.db", "a.png")
TREES = st.sets(
    st.tuples(st.lists(st.sampled_from(NAMES), max_size=3), st.sampled_from(FILES)).map(
        lambda it: "/".join([*it[0], it[1]])
    ),
    min_size=1,
    max_size=14,
)


@pytest.fixture(params=["ahead", "in turn"], autouse=True)
def how_folders_are_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read few entries at once; and all folders before their turn, or none."""
    seconds = -1.0 if request.param == "ahead" else 1e6
    monkeypatch.setattr(folders, "_SLOW_SECONDS", seconds)
    for name, value in {"_ENTRIES": 2, "_NAMES_AHEAD": 3, "_FILES": 2, "_AHEAD": 3}.items():
        monkeypatch.setattr(folders, name, value)


def expected(root: Path, limit: int | None) -> tuple[list[str], dict[str, Any]]:
    """Return the images of a folder, and what is left out of it, by the simplest way."""
    files = [
        str((Path(place) / name).relative_to(root))
        for place, _, names in os.walk(root)
        if not any(part.startswith(".") for part in Path(place).relative_to(root).parts)
        for name in names
    ]
    images: list[str] = []
    left_out = folders.LeftOut()
    for path in sorted(files):
        if len(images) == limit:
            break
        name = path.rpartition("/")[2]
        if name[0] != "." and path.rpartition(".")[2].lower() in ("png", "jpg"):
            images.append(path)
        else:
            left_out.add(path)
    return images, left_out.kinds


@settings(deadline=None, max_examples=60)
@given(TREES, st.none() | st.integers(1, 5), st.integers(1, 4))
def test_a_folder_is_walked_as_if_one_file_came_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, tree: set[str], limit: int | None, block_rows: int
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for path in tree:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    source = image_source.ImageSource(kind="folder", root=root, location=str(root), image_column=None)
    left_out = folders.LeftOut()
    blocks = list(listing.iter_blocks(source, limit=limit, block_rows=block_rows, left_out=left_out))
    images, kinds = expected(root, limit)
    assert [path for block in blocks for path in block.paths] == list(map(folders.to_text, images))
    assert [len(block) for block in blocks[:-1]] == [block_rows] * (len(blocks) - 1)
    assert left_out.kinds == kinds


def test_warnings_and_errors_come_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of folders that the limit leaves out there are none, though they may have been read."""
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    for name in "acde":
        (root / name).mkdir(parents=True)
        (root / name / "1.png").touch()
    (root / "a" / "link").symlink_to(outside)
    (root / "d" / "link").symlink_to(outside)
    scandir = os.scandir

    def refused(path: str) -> Any:
        if str(path).rstrip("/") == str(root / "e"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    for limit, said, fails in ((1, ["a"], False), (2, ["a"], False), (3, ["a", "d"], False), (4, ["a", "d"], True)):
        refusal = pytest.raises(errors.InputError, match=f"cannot list the folder '{root / 'e'}") if fails else None
        with warnings.catch_warnings(record=True) as found, refusal or contextlib.nullcontext():
            warnings.simplefilter("always")
            walked = list(itertools.chain.from_iterable(folders.walk(root, ("**",), limit=limit)))
            assert walked == [f"{name}/1.png" for name in "acd"[:limit]]
        assert [Path(str(each.message).split("'")[1]).parent.name for each in found] == said


def test_folders_are_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are slow: here none is read before all are asked for."""
    monkeypatch.setattr(folders, "_SLOW_SECONDS", -1.0)
    monkeypatch.setattr(folders, "_AHEAD", 6)
    for number in range(6):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "1.png").touch()
    together, scandir = threading.Barrier(6, timeout=300), os.scandir

    def waiting(path: str) -> Any:
        if str(path).rstrip("/") != str(tmp_path):
            together.wait()
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", waiting)
        walked = list(itertools.chain.from_iterable(folders.walk(tmp_path, ("**",))))
    assert walked == [f"{at}/1.png" for at in range(6)]


def test_files_are_asked_for_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_FILES_PER_QUERY", 1)
    together = threading.Barrier(listing._THREADS, timeout=300)

    def waiting(paths: list[str]) -> tuple[list[int], list[int]]:
        together.wait()
        return [int(Path(path).stem) for path in paths], [0] * len(paths)

    monkeypatch.setattr(listing, "_stat_all", waiting)
    for number in range(listing._THREADS):
        (tmp_path / f"{number:03}.png").touch()
    (block,) = listing.iter_blocks(image_source.open_source(str(tmp_path)))
    assert block.bytes == list(range(listing._THREADS))


@pytest.mark.parametrize("kind", ["flat", "nested", "list.csv", "list.parquet"])
@pytest.mark.parametrize("calls", [0, 3])
def test_a_stop_ends_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, calls: int) -> None:
    """Queries that were not begun are not made, no thread goes on, and no manifest is left."""
    asked: list[int] = []
    stopped = threading.Event()

    def slow(paths: list[str]) -> tuple[list[int], list[int]]:
        asked.append(len(paths))
        stopped.wait()
        time.sleep(0.01)
        return [0] * len(paths), [0] * len(paths)

    def stop() -> None:
        nonlocal calls
        calls -= 1
        if calls < 0:
            stopped.set()
            raise errors.Stopped("stopped")

    names = [f"{number % 20}/{number}.png" if kind == "nested" else f"{number}.png" for number in range(400)]
    root = tmp_path / "images"
    for name in names if kind in ("flat", "nested") else ():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if kind == "list.csv":
        (tmp_path / kind).write_text("\n".join(["image", *names]))
    if kind == "list.parquet":
        parquet.write_table(pa.table({"image": names}), tmp_path / kind)
    monkeypatch.setattr(listing, "_stat_all", slow)
    monkeypatch.setattr(listing, "_FILES_PER_QUERY", 1)
    monkeypatch.setattr(listing, "_THREADS", 2)
    monkeypatch.setattr(manifest_rows, "GROUP_ROWS", 100)
    source = image_source.open_source(str(tmp_path / kind if kind.startswith("list") else root))
    others = set(threading.enumerate())
    with pytest.raises(errors.Stopped) as held:  # with what its traceback refers to
        manifest.write_manifest(tmp_path / "m.parquet", source, checkpoint=stop)
    assert str(held.value) == "stopped"
    assert not [each.name for each in set(threading.enumerate()) - others if each.name.startswith("genenc-")]
    assert len(asked) < 100
    assert not list(tmp_path.glob("*m.parquet*"))


CSV_PARTS = ("a", "é", ",", ",", "\n", "\n", "\r\n", "\r", '"', '""', '"q,q"', '"m\nn"', " ", "\u2028", '"a\nb,c\nd"')


def _row_by_row(text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    for cells in reader:
        yield reader.line_num, cells


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(CSV_PARTS), max_size=25).map("".join),
    st.sampled_from([1, 2, 3, 5, 2000, 2**20]),
    st.none() | st.integers(0, 40),
    st.sampled_from([0, 2000]),
)
def test_lines_parsed_together_are_the_rows_that_the_parser_gives_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, text: str, block_rows: int, broken: int | None, before: int
) -> None:
    """With the same line numbers, up to what cannot be read: a byte that is not UTF-8, a quote, a swallowed row.

    `before` is a number of plain lines that come before.
    """
    path = tmp_path_factory.mktemp("csv") / "list.csv"
    first = "image,n\n" + "name.png,1\n" * before
    text = first + text
    content = text.encode()
    at = len(first) + (broken or 0)
    path.write_bytes(content if broken is None else content[:at] + b"\xff" + content[at:])
    found: list[tuple[int, list[str]]] = []
    failed = ""
    try:
        for numbers, lines in tables._iter_csv_blocks(path, block_rows):
            found += zip(numbers, lines, strict=True)
    except errors.InputError as error:
        failed = str(error)
    rows: list[tuple[int, list[str]]] = []
    wrong = ""
    try:
        rows.extend(_row_by_row(text))
    except csv.Error as error:
        wrong = str(error)
    assert found == rows[: len(found)]
    if broken is not None:
        assert failed
    elif "look like rows" in failed:
        assert any("\n" in cell or "\r" in cell for cell in rows[len(found)][1])
    else:
        assert (len(found), bool(failed)) == (len(rows), bool(wrong))
        assert f"after line {rows[-1][0]}: {wrong}" in failed if wrong else not failed


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)), st.data())
def test_texts_are_hashed_with_a_nul_after_each(values: list[str], data: st.DataObject) -> None:
    """Of a part of an array as well, whose offsets do not begin at 0."""
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    part = pa.array(values, pa.string())[start:stop]
    assert manifest_rows._joined(part) == "".join(f"{value}\0" for value in values[start:stop]).encode()
