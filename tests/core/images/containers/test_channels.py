"""Arrays and TIFF stacks whose images have other channels than RGB."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from genenc_core import spec
from genenc_core.images.containers import kinds
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import channels as decode_channels
from genenc_core.images.decode.decoded import ImageUnreadable

SIX = spec.Channels(count=6)
VALUES = np.random.default_rng(0).integers(0, 65535, (4, 6, 20, 30), np.uint16)
"""`[N, C, H, W]`."""


def write_npy(place: Path, values: np.ndarray) -> str:
    np.save(place / "a.npy", values)
    return str(place / "a.npy")


def write_hdf5(place: Path, values: np.ndarray) -> str:
    h5py = pytest.importorskip("h5py")
    with h5py.File(place / "a.h5", "w") as file:
        file.create_dataset("images", data=values, chunks=True)
    return str(place / "a.h5")


def write_zarr(place: Path, values: np.ndarray) -> str:
    array = zarr.create_array(place / "a.zarr", shape=values.shape, dtype=values.dtype, chunks=(2, *values.shape[1:]))
    array[:] = values
    return str(place / "a.zarr")


def frames(path: str, channels: spec.Channels = SIX) -> list[np.ndarray]:
    """Return every frame, `[H, W, C]`."""
    container = kinds.open_container(path, channels)
    contents = [container.read(member.at) for member in container.members(Frames())]
    container.close()
    found = [content.samples.values for content in contents if content.samples is not None]
    assert len(found) == len(contents)
    assert all(content.pixels is None for content in contents)
    return found


@pytest.mark.parametrize("write", [write_npy, write_hdf5, write_zarr])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32", ">u2"])
def test_frames_have_the_array_s_own_values(
    write: Callable[[Path, np.ndarray], str], last: bool, kind: str, tmp_path: Path
) -> None:
    values = (VALUES >> 1).astype(kind)
    path = write(tmp_path, np.ascontiguousarray(np.moveaxis(values, 1, 3)) if last else values)
    found = frames(path)
    assert len(found) == 4
    for frame, own in zip(found, values, strict=True):
        assert np.array_equal(frame, np.moveaxis(own, 0, 2))


@pytest.mark.parametrize("write", [write_npy, write_hdf5, write_zarr])
@pytest.mark.parametrize("last", [True, False])
def test_three_axes_are_one_image_with_channels(
    write: Callable[[Path, np.ndarray], str], last: bool, tmp_path: Path
) -> None:
    one = VALUES[0]
    (found,) = frames(write(tmp_path, np.ascontiguousarray(np.moveaxis(one, 0, 2)) if last else one))
    assert np.array_equal(found, np.moveaxis(one, 0, 2))


def test_three_axes_are_grey_frames_for_a_model_of_one_channel(tmp_path: Path) -> None:
    path = write_npy(tmp_path, VALUES[0])
    assert [frame.shape for frame in frames(path, spec.Channels(count=1))] == [(20, 30, 1)] * 6
    (whole,) = frames(path, spec.Channels(count=1, chosen=(3,)))
    assert whole.shape == (20, 30, 6)


def test_axes_that_may_both_be_those_of_the_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageUnreadable, match="not one of images with channels"):
        kinds.open_container(write_npy(tmp_path, np.zeros((7, 20, 7), np.uint8)), spec.Channels(count=7))


def test_without_channels_the_rules_are_as_before(tmp_path: Path) -> None:
    with pytest.raises(ImageUnreadable, match="not a stack of images"):
        kinds.open_container(write_npy(tmp_path, VALUES))
    grey = kinds.open_container(write_npy(tmp_path, VALUES[0]))
    assert len(list(grey.members(Frames()))) == 6


@pytest.mark.parametrize("axes", ["tczyx", "cyx", "czyx"])
def test_the_channels_of_ome_zarr_are_channels(axes: str, tmp_path: Path) -> None:
    shape = [{"t": 2, "c": 6, "z": 3, "y": 20, "x": 30}[axis] for axis in axes]
    values = np.random.default_rng(1).integers(0, 65535, shape, np.uint16)
    group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=2)
    array = group.create_array("0", shape=values.shape, dtype=values.dtype, chunks=(1,) * (len(shape) - 2) + (16, 16))
    array[:] = values
    scales = [{"axes": [{"name": axis} for axis in axes], "datasets": [{"path": "0"}]}]
    (tmp_path / "image.zarr" / ".zattrs").write_text(json.dumps({"multiscales": scales}))
    found = frames(str(tmp_path / "image.zarr"))
    own = np.moveaxis(values, axes.index("c"), -1).reshape(-1, 20, 30, 6)
    assert len(found) == len(own)
    assert all(np.array_equal(frame, each) for frame, each in zip(found, own, strict=True))
    container = kinds.open_container(str(tmp_path / "image.zarr"), SIX)
    before = container.mark("0")
    chunk = next((tmp_path / "image.zarr" / "0").rglob("*[0-9]"))
    assert before.size > chunk.stat().st_size
    with pytest.raises(ImageUnreadable, match="choose some for the model with --channels"):
        kinds.open_container(str(tmp_path / "image.zarr"))


def test_frames_of_a_tiff_are_pages_or_what_its_axes_say(tmp_path: Path) -> None:
    pages = np.ascontiguousarray(np.moveaxis(VALUES, 1, 3))
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack", planarconfig="contig", metadata=None)
    assert all(np.array_equal(frame, own) for frame, own in zip(frames(f"{tmp_path}/pages.tif"), pages, strict=True))
    tifffile.imwrite(tmp_path / "ome.tif", VALUES, ome=True, photometric="minisblack", metadata={"axes": "TCYX"})
    assert all(np.array_equal(frame, own) for frame, own in zip(frames(f"{tmp_path}/ome.tif"), pages, strict=True))


@pytest.mark.parametrize("write", [write_npy, write_hdf5, write_zarr])
@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((5, 20, 30), spec.Channels(count=3, chosen=(0, 0, 0)), (5, 20, 30, 1)),
        ((50, 20, 30), spec.Channels(count=1, chosen=(0,)), (50, 20, 30, 1)),
        ((5, 20, 30), spec.Channels(count=1), (5, 20, 30, 1)),
        ((5, 20, 30), spec.Channels(count=1, chosen=(2,)), (1, 20, 30, 5)),
        ((5, 20, 30), spec.Channels(count=5), (1, 20, 30, 5)),
        ((20, 30, 5), spec.Channels(count=2, chosen=(0, 4)), (1, 20, 30, 5)),
    ],
)
def test_three_axes_are_grey_frames_or_one_image(
    write: Callable[[Path, np.ndarray], str],
    shape: tuple[int, ...],
    channels: spec.Channels,
    expected: tuple[int, ...],
    tmp_path: Path,
) -> None:
    found = frames(write(tmp_path, np.ones(shape, np.uint16)), channels)
    assert (len(found), *found[0].shape) == expected


@pytest.mark.parametrize(
    ("first", "channels", "expected"),
    [
        ("t", spec.Channels(count=3, chosen=(0, 2, 1)), (5, 20, 30, 1)),
        ("Frame", spec.Channels(count=5), (5, 20, 30, 1)),
        ("z", spec.Channels(count=1, chosen=(0,)), (5, 20, 30, 1)),
        ("band", spec.Channels(count=1, chosen=(0,)), (1, 20, 30, 5)),
        ("channel", spec.Channels(count=1), (1, 20, 30, 5)),
    ],
)
def test_names_of_dimensions_decide(
    first: str, channels: spec.Channels, expected: tuple[int, ...], tmp_path: Path
) -> None:
    data = np.ones((5, 20, 30), np.uint16)
    zarr.create_array(tmp_path / "a.zarr", data=data, dimension_names=(first, "y", "x"))
    found = frames(str(tmp_path / "a.zarr"), channels)
    assert (len(found), *found[0].shape) == expected


@pytest.mark.parametrize("kind", ["float32", "float64", "int16"])
@pytest.mark.parametrize("stated", ["attribute", "unwritten"])
def test_the_value_for_no_value_has_no_data(kind: str, stated: str, tmp_path: Path) -> None:
    """As the value in GDAL's tag of a TIFF: 0 in the image, and an image of nothing else is unreadable."""
    data = np.full((2, 6, 8, 8), 2500, kind)
    data[0, :, :4] = -9999
    data[1] = -9999
    attributes = {"_FillValue": -9999.0} if stated == "attribute" else {}
    zarr.create_array(
        tmp_path / "a.zarr", data=data, attributes=attributes, fill_value=0 if stated == "attribute" else -9999
    )
    wanted = spec.Channels(count=6, value_range=((0.0, 10000.0),))
    container = kinds.open_container(str(tmp_path / "a.zarr"), wanted)
    first, second = (container.read(str(at)).samples for at in range(2))
    assert first is not None
    assert second is not None
    pixels = decode_channels.selected(first, wanted).pixels.numpy()
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 0.25).all()
    with pytest.raises(ImageUnreadable, match="none of its pixels has data"):
        decode_channels.selected(second, wanted)


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((145, 145, 200), spec.Channels(count=3, chosen=(29, 19, 9)), (1, 145, 145, 200)),
        ((200, 145, 145), spec.Channels(count=3, chosen=(29, 19, 9)), (1, 145, 145, 200)),
        ((7, 25, 25, 103), spec.Channels(count=3, chosen=(20, 19, 9)), (7, 25, 25, 103)),
        ((7, 103, 25, 25), spec.Channels(count=3, chosen=(20, 19, 9)), (7, 25, 25, 103)),
        ((40, 30, 50), spec.Channels(count=40), (1, 30, 50, 40)),
        ((40, 30, 50), spec.Channels(count=50), (1, 40, 30, 50)),
        ((20, 30, 40), spec.Channels(count=2, chosen=(0, 4)), (1, 30, 40, 20)),
        ((21, 30, 40), spec.Channels(count=2, chosen=(0, 4)), None),
        ((7, 21, 30, 40), spec.Channels(count=2, chosen=(0, 4)), None),
    ],
)
def test_which_axis_is_that_of_the_channels(
    shape: tuple[int, ...], channels: spec.Channels, expected: tuple[int, ...] | None, tmp_path: Path
) -> None:
    path = write_npy(tmp_path, np.ones(shape, np.uint16))
    if expected is None:
        with pytest.raises(ImageUnreadable, match="at most half as many channels"):
            frames(path, channels)
        return
    found = frames(path, channels)
    assert (len(found), *found[0].shape) == expected
