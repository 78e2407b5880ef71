"""Frames inside SLEAP packages, with the names that their labels have."""

from pathlib import Path

import numpy as np
import pytest

import containers
import sleap_files
from genenc_core import errors
from genenc_core.images.containers.frames import Frames
from genenc_core.images.containers.slp import SlpPackage
from genenc_core.images.labels import reading
from genenc_core.images.sources import image_source, manifest

h5py = pytest.importorskip("h5py")
SHOWN = containers.frames(2)
LABELS = {(0, frame): [sleap_files.Instance([(frame, 2), None])] for frame in (7, 3)}


def package(folder: Path, *, padded: bool = True, **attrs: object) -> Path:
    path = sleap_files.write_slp(folder / "labels.pkg.slp", LABELS)
    images = dict(zip((3, 7), map(containers.png, SHOWN), strict=True))
    return sleap_files.embed(path, images, padded=padded, **attrs)


def pixels(path: Path) -> list[np.ndarray]:
    opened = SlpPackage.open(str(path))
    found = [opened.read(member.at) for member in opened.members(Frames())]
    opened.close()
    from genenc_core.images.decode import decode

    return [
        each.pixels if each.pixels is not None else decode.decode_image(each.data).pixels.permute(1, 2, 0).numpy()
        for each in found
    ]


@pytest.mark.parametrize("padded", [True, False])
def test_images_of_either_form(tmp_path: Path, padded: bool) -> None:
    for found, frame in zip(pixels(package(tmp_path, padded=padded)), SHOWN, strict=True):
        np.testing.assert_array_equal(found, frame)


def test_colours_that_opencv_exchanged_are_put_right(tmp_path: Path) -> None:
    for found, frame in zip(pixels(package(tmp_path, channel_order="BGR")), SHOWN, strict=True):
        np.testing.assert_array_equal(found, frame[..., ::-1])


def test_images_that_are_not_encoded(tmp_path: Path) -> None:
    path = package(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["video0/video"]
        file["video0/video"] = np.stack(SHOWN)
        file["video0/video"].attrs["format"] = "hdf5"
    for found, frame in zip(pixels(path), SHOWN, strict=True):
        np.testing.assert_array_equal(found, frame)


def test_a_package_and_its_own_labels(tmp_path: Path) -> None:
    path = package(tmp_path)
    found = manifest.write_manifest(
        tmp_path / "listed.manifest", image_source.open_source(str(path)), points=reading.read_points(path)
    )
    rows = found.read(0, found.rows)
    assert rows.image_ids == ["labels.pkg.slp/video0/clip.mp4#3", "labels.pkg.slp/video0/clip.mp4#7"]
    assert rows.points[:, 0, 0].tolist() == [3.5, 7.5]
    assert found.columns == ("frame", "video")


def test_the_labels_of_a_package_with_the_video_itself(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "videos").mkdir()
    clip = containers.write_video(tmp_path / "videos", containers.frames(9), codec="mpeg4", name="clip.mp4")
    found = manifest.write_manifest(
        tmp_path / "listed.manifest", image_source.open_source(str(clip)), points=reading.read_points(package(tmp_path))
    )
    at = found.read(0, found.rows).points[:, 0, 0]
    assert {row: x for row, x in enumerate(at.tolist()) if x == x} == {3: 3.5, 7: 7.5}


def test_a_project_without_images_says_where_they_are(tmp_path: Path) -> None:
    path = sleap_files.write_slp(tmp_path / "labels.slp", LABELS)
    with pytest.raises(errors.InputError, match=r"without its images, which are in 'clip.mp4': give these as images"):
        manifest.write_manifest(tmp_path / "listed.manifest", image_source.open_source(str(path)))


@pytest.mark.parametrize("numbers", [[3], [3, 3]])
def test_images_whose_frames_are_not_known_are_refused(tmp_path: Path, numbers: list[int]) -> None:
    path = package(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["video0/frame_numbers"]
        file["video0/frame_numbers"] = numbers
    with pytest.raises(errors.InputError, match=r"damaged SLEAP project: 2 images of 'video0' have the frames"):
        manifest.write_manifest(tmp_path / "listed.manifest", image_source.open_source(str(path)))


def test_images_in_other_files_are_refused(tmp_path: Path) -> None:
    path = package(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["video0/video"]
        file["video0/video"] = h5py.ExternalLink("other.h5", "/data")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros((2, 5), np.int8)
    with pytest.raises(errors.InputError, match="damaged SLEAP project"):
        manifest.write_manifest(tmp_path / "listed.manifest", image_source.open_source(str(path)))
