"""Labels that are no pixels of their images are noticed from a few images and the whole table."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genenc_core import errors
from genenc_core.images.labels.point_table import PointTable
from genenc_core.images.labels.scale import PointsScale
from genenc_core.images.sources import image_source, label_check, manifest

WIDTH, HEIGHT = 160, 120
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of one size, every third a JPEG that its EXIF turns upright, and one that is broken."""
    place = tmp_path_factory.mktemp("photos")
    for index in range(20):
        if index % 3:
            Image.new("RGB", (WIDTH, HEIGHT)).save(place / f"{index:02}.png")
        else:
            exif = Image.Exif()
            exif[274] = 6
            Image.new("RGB", (HEIGHT, WIDTH)).save(place / f"{index:02}.jpg", exif=exif)
    (place / "07.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return place


def labels(folder: Path, change: Change, *, seed: int = 0) -> PointTable:
    """Points anywhere in the images, three an image, some missing."""
    images = tuple(sorted(path.name for path in folder.iterdir()))
    xy = np.random.default_rng(seed).uniform(0.02, 0.98, (len(images), 3, 2)) * (WIDTH, HEIGHT)
    xy[::5, 1] = np.nan
    return PointTable(names=("a", "b", "c"), images=images, xy=change(xy))


def listed(folder: Path, place: Path, table: PointTable) -> manifest.Manifest:
    return manifest.write_manifest(place / "images.parquet", image_source.open_source(str(folder)), points=table)


def swapped(xy: np.ndarray) -> np.ndarray:
    return xy[..., ::-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda xy: xy / (WIDTH, HEIGHT), r"56 of 56 points .* normalised.*--points-scale normalized"),
        (lambda xy: xy / (WIDTH, HEIGHT) * 1.02 - 0.01, r"of 56 points .* normalised.*--points-scale normalized"),
        (swapped, r"inside if x and y are swapped.*--points-columns x=Y,y=X"),
        (lambda xy: xy * 2, r"inside if divided by 1\.9\d? or more.*--points-scale, the width of these"),
        (lambda xy: xy * 1.5, r"inside if divided by 1\.4\d? or more"),
        (lambda xy: xy * 8, r"inside if divided by 7\.\d+ or more"),
    ],
)
def test_what_cannot_be_pixels_is_refused(folder: Path, tmp_path: Path, change: Change, said: str) -> None:
    found = listed(folder, tmp_path, labels(folder, change))
    with pytest.raises(errors.InputError, match=said):
        label_check.check(found, scale_given=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label_check.check(found, scale_given=True)  # --points-scale 1


def test_labels_of_the_images_as_stored_are_refused(folder: Path, tmp_path: Path) -> None:
    """Every third image is turned by its orientation 6: upright x, y = stored height - y, x."""

    def as_stored(xy: np.ndarray) -> np.ndarray:
        made = xy * (0.2, 1)
        made[::3] = np.stack([xy[::3, :, 1], WIDTH - made[::3, :, 0]], axis=-1)
        return made

    with pytest.raises(errors.InputError, match=r"inside the images as stored, .*orientation 6: x, y -> H"):
        label_check.check(listed(folder, tmp_path, labels(folder, as_stored)), scale_given=False)


@pytest.mark.parametrize("turned", [True, False])
def test_swapped_labels_of_turned_images_are_noticed(tmp_path: Path, turned: bool) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    exif = Image.Exif()
    exif[274] = 6 if turned else 1
    for index in range(20):
        size = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)
        Image.new("RGB", size).save(place / f"{index:02}.jpg", exif=exif)
    words = r"as stored, .*\(or with x and y swapped\)" if turned else r"inside if x and y are swapped"
    with pytest.raises(errors.InputError, match=words):
        label_check.check(listed(place, tmp_path, labels(place, swapped)), scale_given=False)


def test_labels_of_larger_frames_of_some_images_alone(tmp_path: Path) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    for index in range(20):
        small = 2 if index % 2 else 1
        Image.new("RGB", (WIDTH // small, HEIGHT // small)).save(place / f"{index:02}.png")
    with pytest.raises(
        errors.InputError, match=r"they belong to images of 80 x 60 pixels, and hardly any to images of 160"
    ):
        label_check.check(listed(place, tmp_path, labels(place, lambda xy: xy)), scale_given=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda xy: xy / 2, r"upper left quarter.*--points-scale \(2 "),
        (lambda xy: xy * (0.5, 0.4), "upper left quarter"),
        (lambda xy: np.concatenate([xy[:-3], xy[-3:] / WIDTH]), "two kinds"),
        (lambda xy: np.concatenate([xy[:-3], xy[-3:] + 900]), r"lie outside their images, such as \(\d+"),
        (lambda xy: np.where(np.isnan(xy), 0, xy), r"4 of 60 points .* exactly at \(0, 0\)"),
        (lambda xy: xy + np.array((5000, 7)), "are these the labelled images"),
    ],
)
def test_what_may_be_right_is_warned_of(folder: Path, tmp_path: Path, change: Change, said: str) -> None:
    with pytest.warns(label_check.SuspiciousLabels, match=said):
        label_check.check(listed(folder, tmp_path, labels(folder, change)), scale_given=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda xy: np.concatenate([xy[:-3], xy[-3:] + 900]), "lie outside"),
        (lambda xy: xy / 2, "upper left quarter"),
        (lambda xy: np.concatenate([xy[:-3], xy[-3:] / WIDTH]), "two kinds"),
        (lambda xy: xy, None),
    ],
)
def test_points_at_the_origin_are_warned_of(folder: Path, tmp_path: Path, change: Change, said: str | None) -> None:
    table = labels(folder, lambda xy: np.where(np.isnan(xy), 0, change(xy)))
    found = listed(folder, tmp_path, table)
    for scale_given in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            label_check.check(found, scale_given=scale_given)
        words = [str(one.message) for one in caught]
        assert "4 of 60 points of the points file lie exactly at (0, 0)" in words[-1]
        assert len(words) == (1 if scale_given or said is None else 2)
        assert scale_given or said is None or said in words[0]


@pytest.mark.parametrize("change", [lambda xy: xy, lambda xy: np.full_like(xy, np.nan), np.round])
@pytest.mark.filterwarnings("error")
def test_usual_labels_pass(folder: Path, tmp_path: Path, change: Change) -> None:
    for seed in range(3):
        table = labels(folder, change, seed=seed)
        if np.isfinite(table.xy).any():
            table.xy[0, 0] = WIDTH + 3, 5  # one label beyond the edge
        label_check.check(listed(folder, tmp_path, table), scale_given=False)


@pytest.mark.parametrize(("text", "factors"), [("normalized", (WIDTH, HEIGHT)), ("percent", (1.6, 1.2)), ("2", (2, 2))])
@pytest.mark.filterwarnings("error")
def test_scaled_labels_pass(folder: Path, tmp_path: Path, text: str, factors: tuple[float, float]) -> None:
    scale = PointsScale.parse(text)
    table = labels(folder, lambda xy: scale.apply(xy / factors))
    table = PointTable(names=table.names, images=table.images, xy=table.xy, scale=scale)
    found = listed(folder, tmp_path, table)
    assert found.points_scale == scale
    label_check.check(found, scale_given=True)


def test_a_wrong_scale_is_warned_of(folder: Path, tmp_path: Path) -> None:
    scale = PointsScale.parse("3")
    table = labels(folder, scale.apply)
    found = listed(folder, tmp_path, PointTable(names=table.names, images=table.images, xy=table.xy, scale=scale))
    with pytest.warns(label_check.SuspiciousLabels, match="is --points-scale right"):
        label_check.check(found, scale_given=True)


Sizes = Callable[[int], tuple[int, int] | None]


def always(width: int, height: int) -> Sizes:
    return lambda _: (width, height)


def stating(table: PointTable, frame: Sizes) -> PointTable:
    sizes = {at: size for at in range(len(table.images)) if (size := frame(at)) is not None}
    return dataclasses.replace(table, frame_sizes=sizes)


def test_another_size_than_the_points_file_states_is_refused(folder: Path, tmp_path: Path) -> None:
    """Labels inside the images, made on larger, smaller, turned or several kinds of frames, as their file says."""
    own = WIDTH, HEIGHT
    cases: list[tuple[Sizes, str]] = [
        (
            always(200, 150),
            r"of 19 of 19 images checked, such as 200 x 150 for one of 160 x 120.*-scale 4/5; --points-scale 1 if",
        ),
        (always(80, 60), r"--points-scale 2; "),
        (always(320, 120), r"--points-scale 1/2,1; "),
        (always(481, 360), r"--points-scale 1/3; "),
        (lambda at: (80, 60) if at == 2 else own, r"of 1 of 19 .*scale those labels in the points file"),
        (lambda at: (80, 60) if at == 2 else None, r"of 1 of 1 .*--points-scale 2; "),
        (lambda at: (80 + at, 60), r"of 19 of 19 .*scale those labels in the points file"),
        (lambda at: own[::-1] if at == 2 else (320, 240), r"of 18 of 19 .*scale those labels in the points file"),
    ]
    for frame, said in cases:
        found = listed(folder, tmp_path, stating(labels(folder, lambda xy: xy), frame))
        with pytest.raises(errors.InputError, match=said):
            label_check.check(found, scale_given=False)
        rows = np.arange(2, 20)
        chosen = manifest.write_selection(tmp_path / "chosen.parquet", found, rows)
        assert chosen.frame_sizes == {row - 2: size for row, size in found.frame_sizes.items() if row in rows}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            label_check.check(found, scale_given=True)  # --points-scale 1


def test_a_stated_size_that_is_turned(folder: Path, tmp_path: Path) -> None:
    """Refused, unless points lie in the images alone, not in frames of the stated size."""

    def as_stored(at: int) -> tuple[int, int]:
        return (WIDTH, HEIGHT) if at % 3 else (HEIGHT, WIDTH)

    for frame, said in (
        (as_stored, r"of 7 of 19 .*, as stored, before .*orientation 6: x, y -> H"),
        (lambda at: (HEIGHT, WIDTH) if at % 3 else (WIDTH, HEIGHT), r"of 12 of 19 .*, turned: .*Rotate"),
    ):
        in_both = stating(labels(folder, lambda xy: xy * (HEIGHT / WIDTH, 1)), frame)
        with pytest.raises(errors.InputError, match=said):
            label_check.check(listed(folder, tmp_path, in_both), scale_given=False)
        upright = stating(labels(folder, lambda xy: xy), frame)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            label_check.check(listed(folder, tmp_path, upright), scale_given=False)


def test_a_scale_and_stated_sizes(folder: Path, tmp_path: Path) -> None:
    """A scale that makes the stated size that of the images passes, to the pixel that sizes are rounded by."""
    for text, frame, passes in (
        ("4/5", (200, 150), True),
        ("1/3", (481, 359), True),
        ("normalized", (7, 7), True),
        ("1/2", (200, 150), False),
    ):
        scale = PointsScale.parse(text)
        table = labels(folder, (lambda xy: xy / (WIDTH, HEIGHT)) if scale.relative else (lambda xy: xy))
        table = dataclasses.replace(stating(table, always(*frame)), scale=scale)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            label_check.check(listed(folder, tmp_path, table), scale_given=True)
        assert ["another size" in str(one.message) for one in caught] == ([] if passes else [True])


@pytest.mark.filterwarnings("error")
def test_images_of_one_pixel_may_have_labels_in_it(tmp_path: Path) -> None:
    place = tmp_path / "tiny"
    place.mkdir()
    Image.new("RGB", (1, 1)).save(place / "a.png")
    table = PointTable(names=("p",), images=("a.png",), xy=np.full((1, 1, 2), 0.5))
    label_check.check(listed(place, tmp_path, table), scale_given=False)


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_of_a_large_file_is_read_from_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    whole = label_check.image_size(str(path))
    monkeypatch.setattr(label_check, "LARGEST_FILE", 10)
    assert label_check.image_size(str(path)) == whole
    assert whole is not None
    assert whole.shown == ((30, 40) if orientation == 6 else (40, 30))
