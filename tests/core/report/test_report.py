"""The page: what it says of a run or dataset, what it leaves out, and that nothing of a run can act in it."""

import hashlib
import html.parser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pictures
from genenc_core import api, errors, testing
from genenc_core.report import pictures as shown_pictures
from genenc_core.report import projection
from genenc_core.report.subject import open_rows
from reported import MODEL

pytest.importorskip("matplotlib")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECTIONS = ["ran", "sheet", "maps", "probes", "channels", "nearest", "projection", "failed", "values", "times"]


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag that is closed at once."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close a tag."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all tags of a name."""
        return [attributes for name, attributes in self.tags if name == tag]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_page_of_a_run(mapped: api.Run, tmp_path: Path) -> None:
    before = digests(Path(mapped.place))
    made = api.report(mapped.place, tmp_path / "page.html")
    page = Parsed((tmp_path / "page.html").read_text())
    assert [each["id"] for each in page.all("section")] == [*SECTIONS, "provenance"]
    assert made.counts.ok == 9
    assert made.as_json()["values"][0]["product"] == "features"
    for words in (
        "nose",
        "day/img_000.png",
        "tiny_models:conv",
        "all 9 stored images",
        "coloured by folder",
        "night (4)",
    ):
        assert words in page.text
    images = page.all("img")
    assert len(images) > 60
    assert all(each["alt"] and str(each["src"]).startswith("data:image/") for each in images)
    assert digests(Path(mapped.place)) == before


def test_the_page_asks_for_nothing_and_runs_nothing(mapped: api.Run) -> None:
    page = Parsed(api.report(mapped.place).html)
    assert not page.all("script")
    assert not page.all("link")
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; img-src data:;")
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:image/"))
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(set(ids)) == len(ids)
    links = {
        str(attributes.get("href") or attributes.get("xlink:href"))[1:]
        for tag, attributes in page.tags
        if tag in ("a", "use")
    }
    assert links <= set(ids)


HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;$\\frac.png"


def test_names_are_shown_and_not_obeyed(extract: Callable[..., api.Run], photos: Path, tmp_path: Path) -> None:
    (photos / "day" / "img_000.png").rename(photos / "day" / HOSTILE)
    (photos / "<style><script>").mkdir()
    pictures.write_folder(photos / "<style><script>", 2, seed=9)
    (photos / "night" / "<b>bad.png").write_bytes(b"no image")
    points = tmp_path / "labels.csv"
    points.write_text(
        "image,point,x,y\n"
        + "\n".join(f"img_001.png,<i>{at}$x_,4,5" for at in range(2)).replace("img_001", "day/img_001")
    )
    run = extract(maps=True, points=str(points), max_failures="100%")
    page = Parsed(api.report(run.place).html)
    assert not page.all("script")
    assert not page.all("b") or all(each == {} for each in page.all("b"))
    assert f"day/{HOSTILE}" in page.text
    assert "<style><script>" in page.text
    assert "<i>0$x_" in page.text
    assert "night/<b>bad.png" in page.text
    assert all(str(each["src"]).startswith("data:") for each in page.all("img"))


def test_images_that_are_gone_or_changed_are_not_shown(mapped: api.Run, photos: Path) -> None:
    """A file with the recorded digest is the row's, whatever its time; another is not, even of its size and time."""
    gone, changed, touched = (photos / "day" / f"img_00{at}.png" for at in range(3))
    gone.unlink()
    stat = changed.stat()
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.utime(touched, (1, 1))
    found = shown_pictures.load(open_rows(mapped.place), np.arange(9))
    assert sorted(found.pixels) == list(range(2, 9))
    assert "No such file" in found.missing[0]
    assert "other content" in found.missing[1] or "damaged" in found.missing[1]
    page = Parsed(api.report(mapped.place).html)
    assert "2 of them cannot be shown" in page.text
    assert "not shown: cannot be read: No such file or directory" in page.text


def test_all_images_gone_leave_maps_and_values(mapped: api.Run, photos: Path) -> None:
    shutil.rmtree(photos)
    made = api.report(mapped.place)
    assert made.contact_sheet is None
    page = Parsed(made.html)
    assert [each["id"] for each in page.all("section")] == [*SECTIONS, "provenance"]
    assert any(each["alt"] == "map of day/img_000.png in colours" for each in page.all("img"))


def test_what_is_shown_is_what_the_model_saw(mapped: api.Run, photos: Path) -> None:
    """The image fills its view of the model's input, upright; the bars are black."""
    found = shown_pictures.load(open_rows(mapped.place), np.array([0])).pixels[0]
    whole = np.asarray(Image.open(photos / "day" / "img_000.png").resize((32, 24), Image.Resampling.BILINEAR), int)
    assert (found[:4] == 0).all()
    assert (found[28:] == 0).all()
    assert np.abs(found[4:28].astype(int) - whole).mean() < 4


def test_other_channels_are_shown_as_inspect_shows_them(
    extract: Callable[..., api.Run], photos: Path, tmp_path: Path
) -> None:
    """The first three as colours, each stretched over all images."""
    run = extract(channels="2,0,1", value_range="0,255", maps=True, fit="pad")
    found = shown_pictures.load(open_rows(run.place), np.arange(9)).pixels
    assert {(image.dtype, image.shape) for image in found.values()} == {(np.dtype(np.uint8), (32, 32, 3))}
    with Image.open(photos / "day" / "img_000.png") as opened:
        whole = np.asarray(opened.convert("RGB").resize((32, 24), Image.Resampling.BILINEAR), float)[..., [2, 0, 1]]
    shown = found[0][4:28].astype(float)
    for channel in range(3):
        assert np.corrcoef(shown[..., channel].ravel(), whole[..., channel].ravel())[0, 1] > 0.9
    assert api.report(run.place, tmp_path / "page.html").counts.ok == 9
    assert "pca.png" in api.preview(run.place, row=0).pictures


def test_unreadable_images_are_listed_and_drawn(extract: Callable[..., api.Run], photos: Path) -> None:
    whole = (photos / "day" / "img_003.png").read_bytes()
    (photos / "day" / "cut.png").write_bytes(whole[:-40])
    (photos / "day" / "none.png").write_bytes(b"no image")
    run = extract(max_failures="100%")
    page = Parsed(api.report(run.place).html)
    assert "2 rows without features" in page.text
    assert [each["alt"] for each in page.all("img") if str(each["alt"]).startswith("what can")] == [
        "what can be drawn of day/cut.png"
    ]
    (photos / "day" / "cut.png").write_bytes(whole)  # mended since: another file than the row's
    assert "what can be drawn of day" not in api.report(run.place).html


def test_a_run_without_maps_points_and_all_shards(extract: Callable[..., api.Run], tmp_path: Path) -> None:
    with testing.failing_shards([1]), pytest.raises(api.Incomplete):
        extract()
    page = Parsed(api.report(tmp_path / "run").html)
    assert "No feature map is stored" in page.text
    assert ["5of 9 images stored" in page.text, "1 to do" in page.text] == [True, True]


def test_a_sample_is_stated_and_seeded(mapped: api.Run) -> None:
    one, same, other = (api.report(mapped.place, sample=4, seed=seed) for seed in (0, 0, 5))
    assert one.sample == "4 of 9 stored images, drawn by seed 0"
    assert "4 of 9 stored images, drawn by seed 0" in Parsed(one.html).text
    when = re.compile(r"Made by genenc report on [^;]*;")
    assert when.sub("", one.html) == when.sub("", same.html)
    assert when.sub("", one.html) != when.sub("", other.html).replace("seed 5", "seed 0")
    assert one.audits == other.audits  # the audit reads all rows


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"color_by": "nope"}, "--color-by 'nope' is no column of .*known: folder, order"),
        ({"product": "maps"}, "--product 'maps' is no stored vector of whole images .*known: features"),
        ({"maps": "features"}, "no feature map 'features' is stored"),
        ({"version": 3}, "is a single run, which has no version '3'"),
        ({"sample": 1}, "sample 1 is not valid"),
    ],
)
def test_wrong_options_are_named(mapped: api.Run, options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        api.report(mapped.place, **options)


def test_where_a_page_may_be_written(mapped: api.Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.html").write_text("<p>mine")
    (tmp_path / "folder.html").mkdir()
    for out, words in (
        (Path(mapped.place) / "page.html", "is in .*where nothing may change"),
        (tmp_path / "thesis.html", "is no report of genenc"),
        (tmp_path / "folder.html", "is not a file"),
        (tmp_path / "page.txt", "is no .html file: give one, such as"),
        (tmp_path / "none" / "page.html", "there is no folder"),
        ("s3://bucket/page.html", "is not a local file"),
    ):
        with pytest.raises(errors.InputError, match=words):
            api.report(mapped.place, str(out))
    api.report(mapped.place, tmp_path / "page.html")
    api.report(mapped.place, tmp_path / "page.html")


def test_columns_of_a_list_colour_the_projection(extract: Callable[..., api.Run], photos: Path, tmp_path: Path) -> None:
    lines = ["path,mood,level"]
    lines += [
        f"{path},{'<b>glad' if at % 2 else 'sad'},{at / 7}" for at, path in enumerate(sorted(photos.rglob("*.png")))
    ]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(lines) + "\n")
    source = open_rows(extract(images=str(listed)).place)
    assert source.columns == ("level", "mood")
    by = projection.colouring(source, source.ok, "mood")
    assert by.kinds == ("<b>glad", "sad")
    assert [by.kinds[at] for at in by.values] == ["<b>glad" if at % 2 else "sad" for at in range(9)]
    assert projection.colouring(source, source.ok, "level").kinds != ()  # nine values are kinds
    page = Parsed(api.report(source.place, color_by="mood").html)
    assert "<b>glad (4)" in page.text


def test_nearest_vectors_are_those_of_a_plain_loop() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 6))
    found, similar = projection.nearest(vectors, np.array([3, 17]), 4)
    for query, order, values in zip((3, 17), found, similar, strict=True):
        cosines = [
            -2.0
            if at == query
            else float(vectors[query] @ other / np.linalg.norm(vectors[query]) / np.linalg.norm(other))
            for at, other in enumerate(vectors)
        ]
        assert order.tolist() == np.argsort(cosines)[::-1][:4].tolist()
        np.testing.assert_allclose(values, sorted(cosines)[::-1][:4])


def test_a_dataset_shows_current_rows_under_their_names(tmp_path: Path, photos: Path) -> None:
    def update(**more: Any) -> api.Dataset:
        return api.update(str(tmp_path / "dataset"), str(photos), maps=True, **MODEL, **more)

    update()
    shutil.move(photos / "day" / "img_001.png", photos / "renamed.png")
    (photos / "day" / "img_002.png").unlink()
    pictures.write_folder(photos / "new", 2, seed=77)
    (photos / "new" / "bad.png").write_bytes(b"no image")
    assert update(by="content", max_failures="100%").version == 2
    source = open_rows(tmp_path / "dataset")
    names = source.names(np.arange(len(source)))
    assert len(names) == 11
    assert "renamed.png" in names
    expected = api.Dataset.open(tmp_path / "dataset").arrays()
    assert names == expected.image_id.values.tolist()
    np.testing.assert_array_equal(source.read("features", np.arange(11)), expected.features.values)
    found = shown_pictures.load(source, source.ok)
    assert found.missing == {}
    assert len(found.pixels) == 10
    page = Parsed(api.report(tmp_path / "dataset").html)
    assert "dataset, version 2" in page.text
    assert "1 row without features" in page.text
    assert "new/bad.png" in page.text
    assert source.find("renamed.png") == names.index("renamed.png")
    first = Parsed(api.report(tmp_path / "dataset", version=1).html)
    assert "of 9 images stored" in first.text


def test_counts_and_values_need_no_torch(mapped: api.Run) -> None:
    code = (
        "import sys; from genenc_core.report import counts, subject, values\n"
        f"opened = subject.open_rows({mapped.place!r})\n"
        "counts.count(opened); [values.audit(opened, each) for each in values.audited(opened)]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_previews_of_an_image(mapped: api.Run) -> None:
    made = api.preview(mapped.place, row=3)
    assert made.image == "day/img_003.png"
    assert sorted(made.pictures) == [
        "channels.png",
        "image.png",
        "pca.png",
        "similarity-nose.png",
        "similarity-tail.png",
    ]
    assert made.notes == ()
    there = api.preview(mapped.place, image="day/img_003.png", at="13,20")
    similar = np.asarray(there.pictures["similarity-13-20.png"])[22:]
    np.testing.assert_array_equal(similar, np.asarray(made.pictures["similarity-nose.png"])[22:])
    for options, words in (
        ({"row": 9}, "--row 9 is out of range: .* rows 0 to 8"),
        ({"image": "nope.png"}, "has no image 'nope.png'.* like 'day/img_000.png'"),
        ({"row": 3, "at": "3"}, "--at '3' is not x,y in pixels"),
        ({"row": 3, "at": "81,20"}, "--at '81,20' is not on the image, which has 50 x 70 pixels"),
        ({}, "give the image"),
        ({"row": 1, "image": "a"}, "give the image"),
    ):
        with pytest.raises(errors.InputError, match=words):
            api.preview(mapped.place, **options)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize(("scheme", "ground"), [(0, (20, 23, 29)), (1, (255, 255, 255))])
def test_a_browser_shows_it(mapped: api.Run, tmp_path: Path, scheme: int, ground: tuple[int, int, int]) -> None:
    """On a phone's width, in both schemes of colours: its policy refuses nothing of its own, and pictures are there."""
    api.report(mapped.place, tmp_path / "page.html")
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=500,2600"),
            *(f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={tmp_path / 'page.png'}"),
            f"file://{tmp_path / 'page.html'}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    with Image.open(tmp_path / "page.png") as taken:
        seen = np.asarray(taken.convert("RGB"))
    assert tuple(seen[2, 2]) == ground
    assert len(np.unique(seen.reshape(-1, 3), axis=0)) > 1000
