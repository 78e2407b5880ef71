"""The manifest holds one row per image with its points; its digest says whether two mean the same."""

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import listed
from genenc_core import errors
from genenc_core.images.labels import matching
from genenc_core.images.labels.point_table import PointTable
from genenc_core.images.sources import image_source, listing, manifest, manifest_rows

NAN = float("nan")


def table_of(entries: dict[str, list[tuple[float, float]]], names: tuple[str, ...] = ("nose", "tail")) -> PointTable:
    return PointTable(names=names, images=tuple(entries), xy=np.array(list(entries.values()), dtype=np.float64))


def write(path: Path, images: Path | str, **options: object) -> manifest.Manifest:
    return manifest.write_manifest(path, image_source.open_source(str(images)), **options)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 5 rows, so that the 12 test images span three."""
    monkeypatch.setattr(manifest_rows, "GROUP_ROWS", 5)


@pytest.mark.usefixtures("small_groups")
def test_rows_read_back(tmp_path: Path, folder: Path) -> None:
    """Every range, also across row groups, gives exactly its rows."""
    entries = {"a01.png": [(1.5, 2), (NAN, NAN)], "sub/b03.jpg": [(3, 4), (5, 6)]}
    written = write(tmp_path / "m.parquet", folder, points=table_of(entries))
    images = listed.images(image_source.open_source(str(folder)))
    assert written.rows == len(images) == 12
    assert written.point_names == ("nose", "tail")
    assert written.root == folder
    assert parquet.ParquetFile(written.path).num_row_groups == 3
    for start in range(13):
        for stop in range(start, 13):
            got = written.read(start, stop)
            assert len(got) == stop - start
            assert got.image_ids == [image.image_id for image in images[start:stop]]
            assert got.paths == [str(folder / image.path) for image in images[start:stop]]
            assert got.bytes.tolist() == [image.bytes for image in images[start:stop]]
            assert got.points.shape == (stop - start, 2, 2)
            wanted = [entries.get(image.image_id, [(NAN, NAN)] * 2) for image in images[start:stop]]
            np.testing.assert_array_equal(got.points, np.array(wanted).reshape(-1, 2, 2))
    assert manifest.Manifest.open(written.path) == written


@pytest.mark.usefixtures("small_groups")
def test_columns_are_plain_parquet(tmp_path: Path, folder: Path) -> None:
    """The file is what its description says, for any Parquet reader."""
    written = write(tmp_path / "m.parquet", folder, points=table_of({"a00.png": [(1, 2), (3, 4)]}))
    table = parquet.read_table(written.path)
    assert table.schema.names == ["row", "image_id", "path", "bytes", "mtime_ns", "point_x", "point_y"]
    assert table.schema.field("point_x").type == pa.list_(pa.float64(), 2)
    assert table["row"].to_pylist() == list(range(12))
    assert table["point_x"][0].as_py() == [1, 3]
    stored = parquet.ParquetFile(written.path).metadata.metadata
    assert stored[b"genenc.digest"].decode() == written.digest
    assert stored[b"genenc.root"].decode() == str(folder)
    blocks = list(written.iter_columns(["path", "row"], batch_rows=4))
    assert all(block.num_rows <= 4 and block.schema.names == ["path", "row"] for block in blocks)
    assert [row for block in blocks for row in block["row"].to_pylist()] == list(range(12))


def test_without_points(tmp_path: Path, folder: Path) -> None:
    written = write(tmp_path / "m.parquet", folder)
    assert written.point_names == ()
    assert written.read(2, 5).points.shape == (3, 0, 2)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["m.parquet"]


def test_digest_ignores_root_and_blocks(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = table_of({"a00.png": [(1, 2), (NAN, 4)]})
    first = write(tmp_path / "1.parquet", folder, points=points)
    shutil.copytree(folder, tmp_path / "moved")
    assert write(tmp_path / "2.parquet", tmp_path / "moved", points=points).digest == first.digest
    monkeypatch.setattr(manifest_rows, "GROUP_ROWS", 3)
    assert write(tmp_path / "3.parquet", folder, points=points).digest == first.digest


def test_digest_sees_everything(tmp_path: Path, folder: Path) -> None:
    """Name, size, time, order, count, points and their names each change it."""
    list_file = folder / "list.csv"

    def digest(points: PointTable | None = None, *, order: tuple[str, ...] = ("a00.png", "a01.png")) -> str:
        list_file.write_text("image\n" + "\n".join(order) + "\n")
        return write(tmp_path / "m.parquet", list_file, points=points).digest

    found = [
        digest(),
        digest(order=("a01.png", "a00.png")),
        digest(order=("a00.png",)),
        digest(order=("a00.png", "a02.png")),
    ]
    found.append(digest(table_of({"a00.png": [(1, 2), (3, 4)]})))
    found.append(digest(table_of({"a00.png": [(1, 2), (3, 5)]})))
    found.append(digest(table_of({"a00.png": [(1, 2), (3, 4)]}, names=("nose", "ear"))))
    found.append(digest(table_of({"a01.png": [(1, 2), (3, 4)]})))
    os.utime(folder / "a00.png", ns=(0, 77))
    found.append(digest())
    (folder / "a00.png").write_bytes(b"other")
    os.utime(folder / "a00.png", ns=(0, 77))
    found.append(digest())
    assert len(set(found)) == len(found)
    assert digest() == found[-1]


def test_memory_does_not_grow_with_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the images need no more memory: the listing is written as it comes."""
    monkeypatch.setattr(manifest_rows, "GROUP_ROWS", 2000)
    source = image_source.ImageSource(kind="folder", root=tmp_path, location=str(tmp_path), image_column=None)

    def peak(count: int) -> int:
        def listed(*_: object, block_rows: int, **__: object) -> Iterator[listing.Block]:
            for start in range(0, count, block_rows):
                ids = [f"{i:040}" for i in range(start, min(start + block_rows, count))]
                yield listing.Block(image_ids=ids, paths=ids, bytes=[1] * len(ids), mtime_ns=[2] * len(ids))

        monkeypatch.setattr(listing, "iter_blocks", listed)
        tracemalloc.start()
        written = manifest.write_manifest(tmp_path / "m.parquet", source)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert written.rows == count
        return used

    peak(4000)
    assert peak(40_000) < 1.3 * peak(10_000)


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(errors.InputError, match=r"no images found in the folder '.*': looked for files ending in jpg"):
        write(tmp_path / "m.parquet", tmp_path)
    (tmp_path / "l.csv").write_text("image\n")
    with pytest.raises(errors.InputError, match="it has no rows"):
        write(tmp_path / "m.parquet", tmp_path / "l.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.csv", "notes.txt"]


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one(tmp_path: Path, folder: Path, limit: int) -> None:
    with pytest.raises(errors.InputError, match="at least 1"):
        write(tmp_path / "m.parquet", folder, limit=limit)


def test_limit_with_points_of_later_images(tmp_path: Path, folder: Path) -> None:
    """Points of images beyond the limit are no error; a points image that is nowhere still is."""
    entries = {"a01.png": [(1, 2), (3, 4)], "sub/b05.jpg": [(5, 6), (7, 8)]}
    written = write(tmp_path / "m.parquet", folder, points=table_of(entries), limit=3)
    assert written.rows == 3
    assert np.isnan(written.read(0, 3).points).sum() == 8
    with pytest.raises(errors.InputError, match=r"none of the 1 images .* 'gone\.png'"):
        write(tmp_path / "m.parquet", folder, points=table_of({"gone.png": [(1, 2), (3, 4)]}), limit=3)


def test_unwritable_place(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(errors.InputError, match="cannot write the manifest"):
        write(tmp_path / "gone" / "m.parquet", folder)


def test_failure_leaves_the_old_manifest(tmp_path: Path, folder: Path) -> None:
    """Written under another name and renamed: a failing second writing leaves the first and no debris."""
    first = write(tmp_path / "m.parquet", folder)
    with pytest.raises(errors.InputError):
        write(tmp_path / "m.parquet", folder, points=table_of({"gone.png": [(1, 2), (3, 4)]}))
    assert manifest.Manifest.open(first.path) == first
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["m.parquet"]


def test_open_refuses_other_files(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(errors.StoreError, match="not a readable manifest"):
        manifest.Manifest.open(tmp_path / "gone.parquet")
    parquet.write_table(pa.table({"row": [1]}), tmp_path / "other.parquet")
    with pytest.raises(errors.StoreError, match="not a genenc manifest"):
        manifest.Manifest.open(tmp_path / "other.parquet")
    written = write(tmp_path / "m.parquet", folder)
    data = written.path.read_bytes()
    written.path.write_bytes(data[:-50])
    with pytest.raises(errors.StoreError, match="not a readable manifest"):
        manifest.Manifest.open(written.path)
    written.path.write_bytes(data[:20])
    with pytest.raises(errors.StoreError, match="damaged"):
        written.read(0, 1)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 13)])
def test_rows_out_of_range(tmp_path: Path, folder: Path, start: int, stop: int) -> None:
    with pytest.raises(errors.StoreError, match="has rows 0 to 12"):
        write(tmp_path / "m.parquet", folder).read(start, stop)


def placed(names: list[str], images: list[str], *, root: str = "/data/set") -> dict[int, int]:
    matcher = matching.Matcher(names)
    for row, image_id in enumerate(images):
        matcher.add(row, image_id, f"{root}/{image_id}", named=image_id.count("/") + 2)
    return matcher.result().rows


@pytest.mark.parametrize(
    ("name", "images", "row"),
    [
        ("b.png", ["a.png", "b.png"], 1),
        ("sub/b.png", ["b.png", "sub/b.png"], 1),
        ("b.png", ["x/a.png", "x/b.png"], 1),
        ("set/b.png", ["b.png"], 0),
        ("/data/set/b.png", ["b.png"], 0),
        ("/elsewhere/set/b.png", ["a.png", "b.png"], 1),
        ("labeled-data\\set\\b.png", ["a.png", "b.png"], 1),
        ("labeled-data/set/b.png", ["b.png"], 0),
        ("u\u0308/b.png", ["\u00fc/b.png"], 0),
        ("\u00fc/b.png", ["u\u0308/b.png"], 0),
        ("./b.png", ["b.png"], 0),
        ("labeled-data/m1/b.png", ["m2/b.png", "labeled-data/m1/b.png", "b.png"], 1),
        ("b.png", ["sub/b.png", "b.png"], 1),
    ],
)
def test_points_find_their_row(name: str, images: list[str], row: int) -> None:
    """image_id, else the longest common end of the name and the image's path."""
    assert placed([name], images) == {row: 0}


@pytest.mark.parametrize("name", ["b.pn", "xb.png", "ub/b.png", "b.png/c", ""])
def test_only_whole_components_match(name: str) -> None:
    with pytest.raises(errors.InputError, match="none of the 1 images"):
        placed([name], ["sub/b.png", "d"])


def test_absent_names_are_told_up_to_three_when_none_is_there() -> None:
    with pytest.raises(errors.InputError, match=r"none of the 4 images .*: 'p', 'q', 'r', \.\.\."):
        placed(["p", "q", "r", "s"], ["b.png"])
    assert placed(["p", "q", "b.png", "r", "s"], ["b.png"]) == {0: 2}


@pytest.mark.parametrize(
    ("name", "images"), [("b.png", ["x/b.png", "y/b.png"]), ("\u00fc.png", ["x/u\u0308.png", "y/\u00fc.png"])]
)
def test_two_equally_good_rows_are_refused(name: str, images: list[str]) -> None:
    with pytest.raises(errors.InputError, match="equally well") as caught:
        placed([name], images)
    assert all(repr(image) in str(caught.value) for image in images)


def test_the_whole_path_decides_between_namesakes() -> None:
    assert placed(["/data/set/x/b.png", "y/b.png"], ["x/b.png", "y/b.png"]) == {0: 0, 1: 1}


@pytest.mark.parametrize(
    ("name", "image", "root"),
    [
        ("labeled-data/vidA/img1.png", "img1.png", "/data/vidB"),
        ("labeled-data/vidA/img1.png", "vidB/img1.png", "/data"),
        ("/home/me/project/labeled-data/vidA/img1.png", "labeled-data/vidB/img1.png", "/data/project"),
        ("C:\\labels\\vidA\\img1.png", "img1.png", "/data/vidB"),
        ("sessionA/left/img1.png", "sessionB/left/img1.png", "/data"),
        ("sessionA/left/img1.png", "left/img1.png", "/data/sessionB"),
    ],
)
def test_labels_of_another_folder_are_not_taken(name: str, image: str, root: str) -> None:
    with pytest.raises(errors.InputError, match="but another folder") as caught:
        placed([name], [image], root=root)
    assert repr(image) in str(caught.value)
    assert repr(name) in str(caught.value)


def test_labels_of_another_files_folder_are_refused() -> None:
    """Of several files in several folders, a name without a folder is of an image where its own file may be of."""
    cases = [
        ("a/f1.png", {"a"}, {"b"}, True),
        ("b/f1.png", {"a"}, {"b"}, False),
        ("a/f1.png", {"a", "b"}, {"c"}, False),
        ("a/f1.png", {"a/labels"}, {"b/labels"}, True),
        ("b/f1.png", {"a/labels"}, {"b/labels"}, False),
        ("x/a/f1.png", {"x/b"}, {"x/a"}, False),
        ("x/a/f1.png", {"x"}, {"x/a"}, True),
        ("a/f1.png", {"."}, {"a"}, True),
        ("photos/f1.png", {"."}, {"annotator1"}, True),
        ("photos/f1.png", {"annotator1", "annotator2"}, {"."}, True),
    ]
    for path, own, others, taken in cases:
        matcher = matching.Matcher(["f1.png", "f2.png"], {0: own, 1: others})
        matcher.add(7, "f1.png", f"/data/{path}", named=1)
        if taken:
            assert matcher.result().rows == {7: 0}, (path, own)
            continue
        with pytest.raises(errors.InputError, match=r"has labels of 'f1.png', which matches .* write the image's fold"):
            matcher.result()
    by_id = matching.Matcher(["17", "f2.png"], {0: {"b"}, 1: {"a"}})
    by_id.add(0, "17", "/data/a/f1.png", named=1)
    assert by_id.result().rows == {0: 0}


def test_points_of_more_videos_are_counted(tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("labeled-data/images/a00.png", "labeled-data/other/a00.png", "labeled-data/other/a01.png")
    written = write(tmp_path / "m.parquet", folder, points=table_of({name: [(1, 2), (3, 4)] for name in names}))
    assert written.labels == {"images_without": written.rows - 1, "absent": 2, "absent_first": list(names[1:])}
    assert "2 of 3 images of the points file are not in the source" in caplog.text
    assert np.isfinite(written.read(0, 1).points).all()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mouse1/images/a00.png", True),
        ("/other/machine/images/a00.png", True),
        ("mouse1/labeled-data/images/a00.png", True),
        ("labeled-data/images/a00.png", False),
        ("images/a00.png", False),
        ("a00.png", False),
    ],
)
def test_names_that_begin_with_other_folders_are_said(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture, name: str, said: bool
) -> None:
    """They may be of another mouse, or of another machine."""
    assert folder.name == "images"
    write(tmp_path / "m.parquet", folder, points=table_of({name: [(1, 2), (3, 4)]}))
    assert (f"{name!r} was matched to '{folder}/a00.png'" in caplog.text) == said


def test_two_names_of_one_row_are_refused() -> None:
    with pytest.raises(errors.InputError, match=r"'v1/set/b\.png' and 'v2/set/b\.png' both match 'b\.png'"):
        placed(["v1/set/b.png", "v2/set/b.png"], ["b.png"])


def test_list_with_own_ids_matches_by_id_or_path(tmp_path: Path, folder: Path) -> None:
    (folder / "l.csv").write_text("image,image_id\na00.png,first\nsub/b00.jpg,second\n")
    entries = {"second": [(1, 2), (3, 4)], "images/a00.png": [(5, 6), (7, 8)]}
    got = write(tmp_path / "m.parquet", folder / "l.csv", points=table_of(entries)).read(0, 2)
    assert got.points[:, 0, 0].tolist() == [5, 1]


@pytest.mark.parametrize(
    "rows",
    [
        [("i2.png", "im/i1.png"), ("x", "im/i2.png")],
        [("im/i1.png", "im/i2.png"), ("im/i2.png", "im/i1.png")],
        [("a", "im/i2.png"), ("i2.png", "other/deep/i1.png")],
        [("b/i2.png", "im/i1.png"), ("x", "a/b/i2.png")],
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_name_that_is_one_rows_id_and_another_rows_file_is_refused(rows: list[tuple[str, str]], turned: bool) -> None:
    for name in {image_id for image_id, _ in rows} & {"i2.png", "im/i1.png", "b/i2.png"}:
        matcher = matching.Matcher([name])
        for row, (image_id, path) in enumerate(reversed(rows) if turned else rows):
            matcher.add(row, image_id, f"/data/set/{path}", named=path.count("/") + 1)
        with pytest.raises(errors.InputError, match=r"is the image_id of .* and the name of"):
            matcher.result()


def test_an_id_that_ends_its_path_is_no_other_rows() -> None:
    matcher = matching.Matcher(["b.png", "second"])
    for row, (image_id, path) in enumerate([("x", "sub/b.png"), ("b.png", "b.png"), ("second", "c.png")]):
        matcher.add(row, image_id, f"/data/set/{path}", named=path.count("/") + 1)
    assert matcher.result().rows == {1: 0, 2: 1}


@pytest.mark.parametrize("name", [" a.png", "a.png ", "sub/ a.png", " s/a.png", "s /a.png"])
def test_blanks_around_a_name_do_not_lead_to_its_twin(name: str) -> None:
    """A cell of a CSV may have lost them: alone the image is meant, beside its twin neither."""
    stripped = "/".join(part.strip() for part in name.split("/"))
    for given in (name, stripped):
        assert placed([given], [name]) == {0: 0}
    for images in ([name, stripped], [stripped, name]):
        with pytest.raises(errors.InputError, match="only in whitespace: rename one"):
            placed([stripped], images)


@pytest.mark.parametrize("with_points", [False, True])
def test_difference_in_words(tmp_path: Path, folder: Path, with_points: bool) -> None:
    points = table_of({"a04.png": [(1, 2), (NAN, 4)], "a05.png": [(1, 2), (3, 4)]}) if with_points else None
    old = write(tmp_path / "old.parquet", folder, points=points)
    assert manifest.describe_difference(old, write(tmp_path / "same.parquet", folder, points=points)) == "no difference"
    (folder / "a00.png").unlink()
    os.utime(folder / "a01.png", ns=(0, 5))
    size = (folder / "a02.png").stat().st_size
    (folder / "a02.png").write_bytes(bytes(size + 20))
    for name in ("n1.png", "n2.png", "n3.png", "n4.png"):
        (folder / name).write_bytes(b"x")
    if with_points:
        points = table_of({"a04.png": [(1, 2), (NAN, 4)], "a05.png": [(1, 2), (3, 4.5)]})
    new = write(tmp_path / "new.parquet", folder, points=points)
    said = manifest.describe_difference(old, new)
    expected = (
        "4 images added (n1.png, n2.png, n3.png, ...), 1 removed (a00.png), "
        f"2 changed on disk (a01.png: same size, different time, a02.png: {size} -> {size + 20} bytes)"
    )
    assert said == expected + (", points differ in 1 image" if with_points else "")


def test_difference_of_order_and_names(tmp_path: Path, folder: Path) -> None:
    source = folder / "l.csv"
    source.write_text("image\na00.png\na01.png\n")
    old = write(tmp_path / "old.parquet", source)
    source.write_text("image\na01.png\na00.png\n")
    assert (
        manifest.describe_difference(old, write(tmp_path / "new.parquet", source)) == "the order of the images differs"
    )
    named = write(tmp_path / "named.parquet", source, points=table_of({"a00.png": [(1, 2)]}, names=("nose",)))
    assert "point names differ (none -> nose)" in manifest.describe_difference(old, named)
    source.write_text("image,image_id\na02.png,a00.png\na01.png,a01.png\n")
    moved = write(tmp_path / "moved.parquet", source)
    said = manifest.describe_difference(old, moved)
    assert said == "1 image changed on disk (a00.png: was a00.png, is a02.png)"
    nothing_shared = write(tmp_path / "other.parquet", folder / "sub")
    assert manifest.describe_difference(old, nothing_shared).startswith(
        "6 images added (b00.jpg, b01.jpg, b02.jpg, ...), 2 removed"
    )


@pytest.mark.slow
def test_pandas_is_not_imported(tmp_path: Path, folder: Path) -> None:
    """Where it is installed, Arrow's conversions import it, which takes a tenth of a short command's time."""
    program = f"""
import sys
from pathlib import Path
from genenc_core.images.sources import manifest, image_source as sources
found = manifest.write_manifest(Path({str(tmp_path / "m.parquet")!r}), sources.open_source({str(folder)!r}))
rows = found.read(0, found.rows)
assert (len(rows.paths), len(rows.bytes), len(rows.mtime_ns), rows.points.shape) == (12, 12, 12, (12, 0, 2))
assert found.content_digest() == found.digest
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_number_is_damage(tmp_path: Path, folder: Path) -> None:
    written = write(tmp_path / "m.parquet", folder)
    table = parquet.read_table(written.path)
    numbers = pa.array([None, *table.column("bytes").to_pylist()[1:]], pa.int64())
    about = {key: value for key, value in written.footer.metadata.items() if key.startswith(b"genenc.")}
    schema = pa.schema([field.with_nullable(field.name == "bytes") for field in table.schema], about)
    columns = [numbers if name == "bytes" else table.column(name) for name in table.column_names]
    parquet.write_table(pa.table(columns, schema=schema), written.path)
    with pytest.raises(errors.StoreError, match=r"m\.parquet.* is damaged: a number is missing"):
        manifest.Manifest.open(written.path).content_digest()
