"""What every kind of container promises, on files that its format's own library wrote."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import containers
from genenc_core import errors, spec
from genenc_core.images.load.loader import ImageLoader
from genenc_core.images.sources import image_source, manifest

FRAMES = containers.frames()
HEIGHT, WIDTH = FRAMES[0].shape[:2]
PREPROCESSING = spec.Preprocessing(height=HEIGHT, width=WIDTH)
Write = Callable[[], Path]


@pytest.fixture(params=list(containers.WRITERS))
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of container that can be read here."""
    if request.param in containers.NEEDS:
        pytest.importorskip(containers.NEEDS[request.param])
    return str(request.param)


@pytest.fixture
def write(kind: str, tmp_path: Path) -> Write:
    """Write a container of that kind with all frames."""
    return lambda: containers.WRITERS[kind](tmp_path, FRAMES)


def listed(path: Path | str, out: Path, *, frames: str | None = None, limit: int | None = None) -> manifest.Manifest:
    if frames is None and str(path).endswith(".tif"):
        frames = "all"
    source = image_source.open_source(str(path), frames=frames)
    return manifest.write_manifest(out / "images.parquet", source, limit=limit)


def load(found: manifest.Manifest) -> tuple[dict[int, np.ndarray], dict[int, str], list[bytes]]:
    """Return pixels `[H, W, 3]` and reasons by row, and the digests."""
    pixels: dict[int, np.ndarray] = {}
    reasons: dict[int, str] = {}
    digests: list[bytes] = []
    with ImageLoader(found, PREPROCESSING, workers=1, batch=3) as loader:
        for batch in loader.iter_batches(0, found.rows):
            images = (image for part in batch.parts for image in part)
            pixels |= {
                row: image.numpy().transpose(1, 2, 0).copy() for row, image in zip(batch.rows, images, strict=True)
            }
            reasons |= {each.row: each.reason for each in batch.unreadable}
            digests += batch.sha256.tolist()
            batch.release()
    return pixels, reasons, digests


def test_rows_are_the_members_in_order_with_their_pixels(write: Write, kind: str, tmp_path: Path) -> None:
    path = write()
    found = listed(path, tmp_path)
    rows = found.read(0, found.rows)
    assert len(set(rows.image_ids)) == len(FRAMES)
    assert all(each.startswith(path.name) for each in rows.image_ids)
    assert {*map(os.path.dirname, rows.paths)} <= {str(tmp_path), str(path)}
    if kind != "zarr":
        assert {*rows.bytes.tolist()} == {path.stat().st_size}
        assert {*rows.mtime_ns.tolist()} == {path.stat().st_mtime_ns}
    pixels, reasons, digests = load(found)
    assert reasons == {}
    for row, frame in enumerate(FRAMES):
        np.testing.assert_array_equal(pixels[row], frame)
    assert len(set(digests)) == len(FRAMES)
    assert found.content_digest() == found.digest
    again = listed(path, tmp_path)
    assert again.digest == found.digest
    assert manifest.describe_difference(found, again) == "no difference"


def test_any_part_can_be_read_alone(write: Write, tmp_path: Path) -> None:
    found = listed(write(), tmp_path)
    with ImageLoader(found, PREPROCESSING, workers=1, batch=2) as loader:
        for row in (4, 1, 3):
            (batch,) = loader.iter_batches(row, row + 1)
            np.testing.assert_array_equal(batch.parts[0][0].numpy().transpose(1, 2, 0), FRAMES[row])
            batch.release()


def test_the_first_ones(write: Write, tmp_path: Path) -> None:
    path = write()
    whole = listed(path, tmp_path).read(0, 5).image_ids
    first = listed(path, tmp_path, limit=2)
    assert first.read(0, first.rows).image_ids == whole[:2]


def test_frames_are_selected(write: Write, kind: str, tmp_path: Path) -> None:
    path = write()
    if kind in ("tar", "parquet", "slp"):
        with pytest.raises(errors.InputError, match=r"--frames 1:4: .*not frames"):
            listed(path, tmp_path, frames="1:4")
        return
    for chosen, wanted in (("all", [0, 1, 2, 3, 4]), ("1:4", [1, 2, 3]), ("::2", [0, 2, 4]), ("0,3", [0, 3])):
        found = listed(path, tmp_path, frames=chosen)
        assert found.read(0, found.rows).image_ids == [f"{path.name}#{index}" for index in wanted]
        pixels, _, _ = load(found)
        for row, index in enumerate(wanted):
            np.testing.assert_array_equal(pixels[row], FRAMES[index])
    for chosen, words in (("0,9", "there is no frame 9"), ("3,1", "do not ascend"), ("4:2", "invalid frames '4:2'")):
        with pytest.raises(errors.InputError, match=words):
            listed(path, tmp_path, frames=chosen)
    if kind != "video":
        with pytest.raises(errors.InputError, match="need a video"):
            listed(path, tmp_path, frames="2/s")


def test_a_container_that_changed_is_refused(write: Write, kind: str, tmp_path: Path) -> None:
    path = write()
    found = listed(path, tmp_path)
    if path.is_dir():
        shutil.rmtree(path)
    other = tmp_path / "other"
    other.mkdir()
    # Of the same size in formats without compression.
    written = containers.WRITERS[kind](other, [frame[::-1] for frame in FRAMES])
    for file in (written, *written.rglob("*")):
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 10 * 10**9))
    written.replace(path)
    pixels, reasons, _ = load(found)
    assert pixels == {}
    assert all("changed since planned" in each for each in reasons.values())
    assert len(reasons) == len(FRAMES)


def test_a_container_that_was_cut_after_planning_has_changed(write: Write, tmp_path: Path) -> None:
    path = write()
    found = listed(path, tmp_path)
    if path.is_dir():
        metadata = path / "zarr.json"
        metadata.write_text(metadata.read_text().replace('"fill_value": 0', '"fill_value": 9'))
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    pixels, reasons, _ = load(found)
    assert pixels == {}
    assert all("changed since planned" in each for each in reasons.values()), reasons


def test_a_container_that_is_gone_is_no_fault_of_its_images(write: Write, tmp_path: Path) -> None:
    path = write()
    found = listed(path, tmp_path)
    (tmp_path / "images.parquet").rename(tmp_path.parent / f"{tmp_path.name}.parquet")
    found = manifest.Manifest.open(tmp_path.parent / f"{tmp_path.name}.parquet")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(OSError, match="mount the volume or restore the folder"):
        load(found)


def test_damage_never_becomes_an_image(write: Write, kind: str, tmp_path: Path) -> None:
    """Truncated anywhere: refused when it is listed, or every row either has its own pixels or a reason."""
    path = write()
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    file = max(files, key=lambda each: each.stat().st_size)
    whole = file.read_bytes().rstrip(b"\0")
    refused = 0
    for share in (0.0, 0.03, 0.3, 0.6, 0.9, 0.999):
        file.write_bytes(whole[: int(share * len(whole))])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = listed(path, tmp_path)
            except errors.InputError:
                refused += 1
                continue
        pixels, reasons, _ = load(found)
        assert {*pixels} | {*reasons} == {*range(found.rows)}
        for row, image in pixels.items():
            np.testing.assert_array_equal(image, FRAMES[row])
        assert found.rows == len(FRAMES) or said
        refused += bool(reasons or said)
    assert refused >= 5  # the last bytes may be an index that is not needed


def test_a_file_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    name = containers.WRITERS[kind](tmp_path, FRAMES).name
    other = tmp_path / "other"
    other.mkdir()
    path = other / name
    if kind == "zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    else:
        path.write_bytes(b"This is not what its name says. " * 100)
    with pytest.raises(errors.InputError, match=name):
        listed(path, other)
