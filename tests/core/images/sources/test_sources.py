"""Folders, globs and lists give the same images in the same order, or a clear refusal."""

import dataclasses
import glob
import os
import re
import shutil
import warnings
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import listed
from genenc_core import errors
from genenc_core.images.sources import folders, image_source, listing, manifest


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def images_of(path: Path) -> list[listed.Listed]:
    return listed.images(image_source.open_source(str(path)))


def ids(images: str, **options: object) -> list[str]:
    return [image.image_id for image in listed.images(image_source.open_source(images), **options)]


def test_folder_is_recursive_sorted_and_only_images(tmp_path: Path) -> None:
    """String order of the whole relative path; any case of extension; hidden files and folders are left out."""
    touch(tmp_path, "b.PNG", "a/z.jpg", "a.jpeg", "a-b/c.TIFF", "a/b/c.webp", "notes.txt", "noextension", "x.csv")
    touch(tmp_path, ".hidden.png", ".git/a.png", "a/._b.jpg", "a/png")
    found = ids(str(tmp_path))
    assert found == ["a-b/c.TIFF", "a.jpeg", "a/b/c.webp", "a/z.jpg", "b.PNG"]
    assert found == sorted(found)


def test_a_list_that_is_a_link_is_of_the_folder_that_it_is_named_in(tmp_path: Path) -> None:
    touch(tmp_path, "one/img/a.png", "other/img/a.png")
    (tmp_path / "one" / "list.csv").write_text("image\nimg/a.png\n")
    (tmp_path / "other" / "list.csv").symlink_to(tmp_path / "one" / "list.csv")
    source = image_source.open_source(str(tmp_path / "other" / "list.csv"))
    assert source.root == tmp_path / "other"
    assert [image.path for image in listed.images(source)] == ["img/a.png"]


@pytest.mark.parametrize("name", ["$RECYCLE.BIN", "a/@eaDir", "#recycle", "System Volume Information"])
def test_folders_of_the_system_are_named_and_not_entered(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a/b.png", f"{name}/sub/old.png")
    with pytest.warns(folders.SystemFolderNotEntered, match="deleted files"):
        assert ids(str(tmp_path)) == ["a/b.png"]
    assert ids(str(tmp_path / name)) == ["sub/old.png"]
    source = image_source.open_source(str(tmp_path))
    with pytest.warns(folders.SystemFolderNotEntered):
        now = manifest.write_manifest(tmp_path / "now.parquet", source)
    assert not now.listed_alike(source).system_folders
    # Runs of earlier versions keep what they listed.
    earlier = dataclasses.replace(source, system_folders=True)
    before = manifest.write_manifest(tmp_path / "before.parquet", earlier)
    assert before.rows == 2
    assert before.listed_alike(source).system_folders


@settings(deadline=None, max_examples=40)
@given(st.sets(st.lists(st.sampled_from(["a", "b", "a-", "a.", "B", "é", "a0"]), min_size=1, max_size=3).map("/".join)))
def test_order_is_the_string_order(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    root = tmp_path_factory.mktemp("tree")
    touch(root, *(f"{name}/i.png" for name in names), *(f"{name}.png" for name in names))
    found = ids(str(root))
    assert found == sorted(found)
    assert set(found) == {f"{name}/i.png" for name in names} | {f"{name}.png" for name in names}
    shutil.rmtree(root)


def test_file_facts(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.utime(tmp_path / "a.png", ns=(5, 123456789))
    (image,) = listed.images(image_source.open_source(str(tmp_path)))
    assert image == listed.Listed(image_id="a.png", path="a.png", bytes=1, mtime_ns=123456789)


def test_linked_folders_are_not_entered_linked_files_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.png", "other/b.png")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/folder.png").symlink_to(tmp_path / "other")
    (tmp_path / "data/c.png").symlink_to(tmp_path / "other/b.png")
    (tmp_path / "data/round.png").symlink_to(tmp_path / "data/round.png")
    with pytest.warns(folders.LinkedFolderNotEntered, match=r"folder\.png', a link to .*other' outside") as told:
        assert ids(str(tmp_path / "data")) == ["a.png", "c.png", "round.png"]
    assert len(told) == 1, "a link back into the source leaves nothing out"
    (tmp_path / "data/round.png").unlink()
    (tmp_path / "data/folder.png").unlink()
    assert ids(str(tmp_path / "data/**/*.png")) == ["a.png", "c.png"]


@pytest.mark.parametrize(
    ("images", "link", "target", "said"),
    [
        ("src", "current", ".v/2024", r"current', a link to .* which is not listed itself"),
        ("src", "bin", "#recycle/x", r"bin', a link to .* which is not listed itself"),
        ("src/*/x/*.png", "cam2", "store/cam2", r"cam2', a link to .* which is not listed itself"),
        ("src/*/x/*.png", "cam2", "cam1", ""),
        ("src/*/x/*.png", "cam2/x", "cam1/x", ""),
        ("src/**/x/*.png", "cam2", "store/cam2", ""),
        ("src", "cam2", "store/cam2", ""),
        ("src/*.png", "cam2", "store/cam2", ""),
    ],
)
def test_a_link_to_a_folder_in_the_source_is_told_unless_that_is_listed(
    tmp_path: Path, images: str, link: str, target: str, said: str
) -> None:
    touch(tmp_path, "src/cam1/x/a.png", "src/b.png", f"src/{target}/x/c.png")
    (tmp_path / "src" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "src" / link).symlink_to(tmp_path / "src" / target)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids(str(tmp_path / images))
    told = [str(item.message) for item in caught if item.category is folders.LinkedFolderNotEntered]
    assert len(told) == bool(said)
    assert not told or re.search(said, told[0])


def test_a_dangling_link_is_a_row(tmp_path: Path) -> None:
    """N rows for N files: what cannot be read is seen later, not left out."""
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (image,) = listed.images(image_source.open_source(str(tmp_path)))
    assert (image.bytes, image.mtime_ns) == (-1, -1)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png", "map.png"]),
        ("*", ["a.png", "b.jpg", "map.png"]),
        ("m?/*.png", ["m1/a.png", "m2/a.png"]),
        ("m[!1]/*", ["m2/a.png"]),
        ("**/a.png", ["a.png", "m1/a.png", "m1/x/a.png", "m2/a.png"]),
        ("m1/**", ["a.png", "x/a.png"]),
        ("m*/**", ["m1/a.png", "m1/x/a.png", "m2/a.png"]),
        ("m*/**/**", ["m1/a.png", "m1/x/a.png", "m2/a.png"]),
        ("**/x/*", ["m1/x/a.png"]),
        ("m1/x/a.png", ["a.png"]),
    ],
)
def test_glob(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    touch(tmp_path, "a.png", "b.jpg", "map.png", "m1/a.png", "m1/x/a.png", "m2/a.png", "m2/notes.txt")
    assert ids(str(tmp_path / pattern)) == expected
    found = {Path(path) for path in glob.glob(str(tmp_path / pattern), recursive=True)}  # noqa: PTH207
    assert len(expected) == sum(path.suffix in (".png", ".jpg") for path in found)


def test_a_glob_of_an_earlier_run_goes_on_as_it_was(tmp_path: Path) -> None:
    """Its last `**` took files beside the folders, too; the manifest says by which rule it was listed."""
    touch(tmp_path, "a.png", "map.png", "m1/a.png")
    source = image_source.open_source(str(tmp_path / "m*/**"))
    earlier = dataclasses.replace(source, earlier_glob=True)
    assert [image.path for image in listed.images(earlier)] == ["m1/a.png", "map.png"]
    assert manifest.write_manifest(tmp_path / "now", source).earlier_glob is False
    assert manifest.write_manifest(tmp_path / "earlier", earlier).earlier_glob is True


def test_relative_glob_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with glob characters is a file when it exists; a relative pattern starts in the current folder."""
    touch(tmp_path, "odd[1].png", "odd1.png", "sub/[x]/a.png")
    monkeypatch.chdir(tmp_path)
    assert ids("odd[1].png") == ["odd[1].png"]
    assert ids("o*") == ["odd1.png", "odd[1].png"]
    assert ids("sub/[x]") == ["a.png"]


def test_a_file_of_the_last_nanosecond_before_1970_has_its_time(tmp_path: Path) -> None:
    """Arrow, which is asked for times, takes this one for none."""
    touch(tmp_path, "a.png", "b.png")
    os.utime(tmp_path / "a.png", ns=(-1, -1))
    os.utime(tmp_path / "b.png", ns=(-2, -2))
    assert [(image.bytes, image.mtime_ns) for image in images_of(tmp_path)] == [(1, -1), (1, -2)]


def test_limit_takes_the_first(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    assert ids(str(tmp_path), limit=2) == ["a.png", "b.png"]


def write_list(path: Path, columns: dict[str, list[object]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path)
        return path
    delimiter = "\t" if path.suffix == ".tsv" else ","
    lines = [delimiter.join(columns), *(delimiter.join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\ufeff" + "\n".join(lines) + "\n\n")
    return path


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.parquet"])
@pytest.mark.parametrize("column", ["image", "path", "file", "filename", "image_path"])
def test_list_keeps_its_order(tmp_path: Path, name: str, column: str) -> None:
    """Relative entries start at the list's folder; a missing file is a row with -1; outside paths are absolute."""
    touch(tmp_path, "in/b.png", "in/a.png", "out.png")
    entries = ["b.png", "./a.png", "gone.png", "../out.png", str(tmp_path / "in/c.png")]
    path = write_list(tmp_path / "in" / name, {"other": [1, 2, 3, 4, 5], column: entries})
    found = listed.images(image_source.open_source(str(path)))
    assert [image.path for image in found] == ["b.png", "a.png", "gone.png", str(tmp_path / "out.png"), "c.png"]
    assert [image.image_id for image in found] == [image.path for image in found]
    assert [image.bytes for image in found] == [1, 1, -1, 1, -1]
    assert found[2].mtime_ns == -1


def test_list_with_ids_and_named_column(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    path = write_list(tmp_path / "l.parquet", {"image_id": [7, 8], "where": ["a.png", "a.png"], "image": ["x", "y"]})
    source = image_source.open_source(str(path), image_column="where")
    assert [(image.image_id, image.path) for image in listed.images(source)] == [("7", "a.png"), ("8", "a.png")]


@pytest.mark.parametrize("names", [("filename", "image_path"), ("image_path", "filename"), ("path", "file")])
def test_of_a_path_and_its_tail_the_one_is_read_that_leads_to_files(tmp_path: Path, names: tuple[str, str]) -> None:
    touch(tmp_path, "im/sub/a.png")
    columns = {"image_path": ["im/sub/a.png"], "path": ["im/sub/a.png"], "filename": ["a.png"], "file": ["a.png"]}
    path = write_list(tmp_path / "l.csv", {name: columns[name] for name in names})
    assert [image.path for image in listed.images(image_source.open_source(str(path)))] == ["im/sub/a.png"]
    # Paths of another machine beside names that lead somewhere.
    columns = {"image": ["im/sub/a.png"], "path": ["/home/somebody/im/sub/a.png"]}
    path = write_list(tmp_path / "other.csv", columns)
    assert [image.path for image in listed.images(image_source.open_source(str(path)))] == ["im/sub/a.png"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    "names", [("path", "image"), ("filename", "img_path"), ("File", "IMAGE_NAME"), ("image", "Image")]
)
@pytest.mark.parametrize("other", ["c.png", "x/b.png", "bb.png", "B.png"])
def test_two_columns_of_images_need_a_choice(tmp_path: Path, names: tuple[str, str], other: str, suffix: str) -> None:
    touch(tmp_path, "a.png", "sub/b.png", "c.png")
    path = write_list(tmp_path / f"l.{suffix}", {names[0]: ["a.png", "sub/b.png"], names[1]: ["a.png", other]})
    with pytest.raises(errors.InputError, match=r"several possible image columns: .*--image-column"):
        image_source.open_source(str(path))
    assert [image.path for image in listed.images(image_source.open_source(str(path), image_column=names[0]))] == [
        "a.png",
        "sub/b.png",
    ]


@pytest.mark.parametrize("names", [("Image", "image"), ("IMAGE", "image", "Image"), ("File", "file")])
def test_of_columns_that_differ_in_case_the_exact_one_is_taken(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = write_list(tmp_path / "l.csv", {name: [name.islower() * "sub/" + "a.png"] for name in names})
    assert ids(str(path)) == ["sub/a.png"]
    path = write_list(tmp_path / "twins.csv", {name: [f"{name}.png"] for name in names})
    with pytest.raises(errors.InputError, match=rf"as '{names[1].lower()}' and .*--image-column {names[1].lower()}"):
        image_source.open_source(str(path))


@pytest.mark.parametrize("others", [["a.png", "b.png"], ["3", "4"], ["", "sub/b.png"], ["cat", "dog"]])
def test_a_second_column_that_names_no_other_image_is_none(tmp_path: Path, others: list[str]) -> None:
    touch(tmp_path, "a.png", "sub/b.png")
    path = write_list(tmp_path / "l.csv", {"image": ["a.png", "sub/b.png"], "filename": others})
    assert ids(str(path)) == ["a.png", "sub/b.png"]


def test_duplicates_in_a_list_are_refused(tmp_path: Path) -> None:
    """Also when the two spell the path differently; but only among the rows that are used."""
    path = write_list(tmp_path / "l.csv", {"image": ["a.png", "b.png", "./a.png"]})
    with pytest.raises(errors.InputError, match=r"'a\.png' twice"):
        ids(str(path))
    assert ids(str(path), limit=2) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,size\na.png,3\n", "no image column.*its columns are: name, size.*--image-column"),
        ("", "no image column.*none"),
        ("image,other\na.png,1\n,2\n", "row 3 has an empty"),
        ("other,image\n1\n", "line 2 has 1 cells"),
    ],
)
def test_bad_list(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "l.csv"
    path.write_text(text)
    with pytest.raises(errors.InputError, match=words):
        ids(str(path))


def test_list_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    (tmp_path / "l.parquet").write_text("image\na.png\n")
    (tmp_path / "l.csv").write_bytes(b"image\n\xff\xfe.png\n")
    for name in ("l.parquet", "l.csv"):
        with pytest.raises(errors.InputError, match="cannot read"):
            ids(str(tmp_path / name))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("gone", "does not exist"),
        ("notes.txt", "is not a folder, an image"),
        ("gone/*.png", "starts in .* not a folder"),
    ],
)
def test_nothing_usable_there(tmp_path: Path, images: str, words: str) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(errors.InputError, match=words):
        image_source.open_source(str(tmp_path / images))


def test_image_column_needs_a_list(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="needs a CSV, Parquet or JSON-lines list"):
        image_source.open_source(str(tmp_path), image_column="image")


def test_odd_names_are_rows_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not UTF-8, in a folder that is not UTF-8, and one that looks like what is written for such a name."""
    root = tmp_path / os.fsdecode(b"r\xe9sum\xe9")
    touch(root, os.fsdecode(b"bad\xff.png"), r"bad\xff.png", os.fsdecode(b"d\xfe/\xc3\xa9.png"), "line\nbreak.png")
    monkeypatch.chdir(root)
    found = listed.images(image_source.open_source("."))
    assert {image.path for image in found} == {r"bad\xff.png", r"bad\x5cxff.png", r"d\xfe/é.png", "line\nbreak.png"}
    assert all(image.bytes == 1 and image.image_id == image.path for image in found)
    with pytest.raises(errors.InputError, match=r"is not valid UTF-8.*change into the folder"):
        image_source.open_source(str(root))


def test_a_list_names_odd_files_by_their_text(tmp_path: Path) -> None:
    """What a run recorded can be listed again; a file that has that very name goes first."""
    touch(tmp_path, os.fsdecode(b"a\xff.png"), os.fsdecode(b"b\xff.png"), r"b\xff.png")
    path = write_list(tmp_path / "l.csv", {"image": [r"a\xff.png", r"b\xff.png", r"c\xff.png"]})
    found = listed.images(image_source.open_source(str(path)))
    assert [image.path for image in found] == [r"a\xff.png", r"b\x5cxff.png", r"c\x5cxff.png"]
    assert [image.bytes for image in found] == [1, 1, -1]


def test_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are never left out silently (the tests may run as root, so the refusal of the system is played)."""
    touch(tmp_path, "a.png", "locked/b.png")
    real = os.scandir

    def refusing(path: os.PathLike[str]) -> object:
        if str(path).rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(errors.InputError, match=r"locked.*Permission denied"):
        ids(str(tmp_path))
    with pytest.raises(errors.InputError, match=r"locked.*Permission denied"):
        image_source.open_source(str(tmp_path / "locked"))


def test_blocks_are_of_one_size_whatever_the_lists_row_groups(tmp_path: Path) -> None:
    """Blocks of a list join its row groups; the limit cuts inside one; facts stay with their images."""
    names = [f"{number:02d}.png" for number in range(23)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * number)
    parquet.write_table(pa.table({"image": names}), tmp_path / "l.parquet", row_group_size=4)
    for images in (tmp_path, tmp_path / "l.parquet"):
        source = image_source.open_source(str(images))
        blocks = list(listing.iter_blocks(source, limit=22, block_rows=10))
        assert [len(block) for block in blocks] == [10, 10, 2]
        assert [name for block in blocks for name in block.image_ids] == names[:22]
        assert [size for block in blocks for size in block.bytes] == list(range(22))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_behind_the_limit_are_not_looked_at(tmp_path: Path, kind: str) -> None:
    names = [*(f"{number}.png" for number in range(5)), "", "5.png"]
    path = tmp_path / f"l.{kind}"
    if kind == "csv":
        path.write_text("image,weight\n" + "".join(f"{name},1\n" for name in names) + "one,cell,too many\n")
    else:
        parquet.write_table(pa.table({"image": names}), path, row_group_size=3)
    source = image_source.open_source(str(path))
    for limit in range(6):
        assert sum(map(len, listing.iter_blocks(source, limit=limit))) == limit
    with pytest.raises(errors.InputError, match="empty 'image'"):
        list(listing.iter_blocks(source, limit=6))


ENTRIES = [
    "a.png",
    "./a.png",
    "b//a.png",
    "b/./a.png",
    "b/../a.png",
    "a.png/",
    "..",
    ".",
    "/x/a.png",
    "ROOT/a.png",
    "ä\\b",
]


@given(st.lists(st.sampled_from(ENTRIES), min_size=1, max_size=5, unique=True))
def test_a_clean_block_is_listed_as_its_entries_one_by_one(entries: list[str]) -> None:
    root = Path("/some/root")
    named = [entry.replace("ROOT", str(root)) for entry in entries]
    told = "\0" + "\0".join(named) + "\0"
    clean = listing._is_clean(told)
    assert listing._files(root, named, clean=clean) == listing._files(root, named, clean=False)


def test_what_one_file_refuses_keeps_no_fact_of_another(tmp_path: Path) -> None:
    """A block with a name that Arrow cannot ask for, a folder, a loop and a gone file is looked at one by one."""
    touch(tmp_path, "a.png", os.fsdecode(b"\xff.png"))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    paths = [str(tmp_path / name) for name in ("a.png", "loop.png", "gone.png", "folder.png", "x" * 300)]

    def together(asked: list[str]) -> list[tuple[int, int]]:
        return list(zip(*listing._stat_all(asked), strict=True))

    expected = [listing._stat(path) for path in paths]
    assert expected[0][0] == 1
    assert expected[1] == expected[2] == expected[4] == (-1, -1)
    assert together(paths) == expected
    odd = str(tmp_path / os.fsdecode(b"\xff.png"))
    assert together([*paths, odd]) == [*expected, listing._stat(odd)]
    for at in range(len(paths)):
        assert together(paths[at : at + 1]) == expected[at : at + 1]


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("sub\\a.png", "sub/a.png"),
        (".\\sub\\a.png", "sub/a.png"),
        ("odd\\name.png", "odd\\name.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("sub\\caf\u00e9.png", "sub/cafe\u0301.png"),
        ("a.png  ", "a.png"),
        ("a.png ", "a.png "),
        ("file://{root}/with%20blank.png", "with blank.png"),
        ("a%20b.png", "a%20b.png"),
        ("{root}/a.png", "a.png"),
    ],
)
def test_names_from_other_systems_find_their_files(tmp_path: Path, entry: str, file: str) -> None:
    """A file of exactly the name comes first; Parquet keeps blanks that a CSV loses."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    table = pa.table({"image": [entry.format(root=tmp_path)]})
    parquet.write_table(table, tmp_path / "list.parquet")
    (found,) = images_of(tmp_path / "list.parquet")
    assert (found.path, found.bytes) == (folders.to_text(file), 0)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("C:\\data\\a.png", "a Windows path"),
        ("d:/data/a.png", "a Windows path"),
        ("\\\\server\\share\\a.png", "a Windows path"),
        ("ftp://example.org/a.png", r"is a URL \(ftp://\).*download"),
        ("az://bucket/a.png", r"is a URL \(az://\)"),
        ("iVBORw0KGgo" + "A" * 5000, r"not a path.*\(base64\)"),
    ],
)
def test_entries_that_can_be_no_file_here_are_refused(tmp_path: Path, entry: str, words: str) -> None:
    """One such entry among others is enough: all rows would be unreadable."""
    (tmp_path / "a.png").touch()
    parquet.write_table(pa.table({"image": ["a.png", entry]}), tmp_path / "list.parquet")
    with pytest.raises(errors.InputError, match=words) as error:
        images_of(tmp_path / "list.parquet")
    assert "list.parquet" in str(error.value)


def test_a_name_of_two_files_that_look_alike_is_refused(tmp_path: Path) -> None:
    """Composed and decomposed letters, and a list that mixes them."""
    composed, decomposed = "\u00e9\u00e9.png", "e\u0301e\u0301.png"
    (tmp_path / composed).touch()
    (tmp_path / decomposed).touch()
    (tmp_path / "list.csv").write_text(f"image\n{composed}\n", encoding="utf-8")
    assert len(images_of(tmp_path / "list.csv")) == 1
    (tmp_path / "list.csv").write_text("image\n\u00e9e\u0301.png\n", encoding="utf-8")
    with pytest.raises(errors.InputError, match="two files whose names look the same"):
        images_of(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[1, 2]], "holds list<.*not image paths"),
        ([1.5], "holds double, not image paths"),
    ],
)
def test_a_parquet_column_that_holds_no_paths(tmp_path: Path, values: list[object], words: str) -> None:
    parquet.write_table(pa.table({"image": values}), tmp_path / "list.parquet")
    with pytest.raises(errors.InputError, match=words):
        image_source.open_source(str(tmp_path / "list.parquet"))


@pytest.mark.parametrize(
    "text", ["Image;other\na.png;1\n", "x\tFile Path\timage_path\n1\t2\ta.png\n", "\ufeffIMG\na.png\n"]
)
def test_lists_with_other_delimiters_and_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    (found,) = images_of(tmp_path / "list.csv")
    assert found.path == "a.png"


def test_files_that_no_reader_takes_are_counted_and_named(tmp_path: Path) -> None:
    """Of a folder, in subfolders too; hidden and the system's own are not, nor what a glob does not match."""
    touch(tmp_path, "a.png", "b.HDR", "sub/c.hdr", "d.hdr", "e.hdr", "noext", "sub/f.npy", ".hidden.npy")
    touch(tmp_path, "Thumbs.db", "sub/desktop.ini", ".git/g.npy")
    left_out = folders.LeftOut()
    list(listing.iter_blocks(image_source.open_source(str(tmp_path)), left_out=left_out))
    assert {kind: count for kind, (count, _) in left_out.kinds.items()} == {".hdr": 4, "": 1, ".npy": 1}
    assert folders.describe(left_out.kinds) == (
        "6 files are not images that genenc can read: 4 .hdr (b.HDR, d.hdr, e.hdr, ...), 1 without an extension "
        "(noext), 1 .npy (sub/f.npy)"
    )
    touch(tmp_path, ".DSC1.jpg", "sub/.g.png", "._a.png", ".cache/h.png")
    hidden = folders.LeftOut()
    assert [len(block) for block in listing.iter_blocks(image_source.open_source(str(tmp_path)), left_out=hidden)] == [
        1
    ]
    assert hidden.kinds["hidden .jpg"] == (1, (".DSC1.jpg",))
    assert hidden.kinds["hidden .png"] == (1, ("sub/.g.png",))
    only = folders.LeftOut()
    list(listing.iter_blocks(image_source.open_source(str(tmp_path / "*.png")), left_out=only))
    assert only.kinds == {}


def test_a_csv_list_takes_a_name_with_its_blanks_where_there_is_such_a_file(tmp_path: Path) -> None:
    touch(tmp_path, " lead.png", "lead.png", "tail.png", "other.png ")
    (tmp_path / "l.csv").write_text(
        "n,image,m\n1, lead.png,\n2,lead.png,\n3, tail.png ,\n4,other.png ,\n5, gone.png,\n"
    )
    assert ids(str(tmp_path / "l.csv")) == [" lead.png", "lead.png", "tail.png", "other.png ", "gone.png"]
    (tmp_path / "l.csv").write_text("n,image\n1,a.png\n2,  \n")
    with pytest.raises(errors.InputError, match="row 3 has an empty"):
        ids(str(tmp_path / "l.csv"))


def test_two_dots_behind_a_link_lead_where_the_system_goes(tmp_path: Path) -> None:
    """Not to a file of the same name beside the link."""
    touch(tmp_path, "set/a.png", "set/x.png", "other/x.png", "other/deep/b.png")
    (tmp_path / "set" / "link").symlink_to("../other/deep")
    entries = ["link/../x.png", "./sub/../x.png", "../set/a.png", "link/b.png"]
    (tmp_path / "set" / "l.csv").write_text("\n".join(["image", *entries]))
    found = [image.path for image in images_of(tmp_path / "set" / "l.csv")]
    assert found == [str(tmp_path / "other/x.png"), "x.png", "a.png", "link/b.png"]


@pytest.mark.parametrize("name", ["c.png?x=1.png", "c.png#2.png", "c d.png"])
def test_an_address_of_a_file_keeps_all_of_its_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "c.png", name)
    (tmp_path / "l.csv").write_text(f"image\nfile://{tmp_path}/{name.replace(' ', '%20')}\n")
    assert ids(str(tmp_path / "l.csv")) == [name]
