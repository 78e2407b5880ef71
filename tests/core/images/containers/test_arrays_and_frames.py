"""Rules for values of arrays, and selections of frames by time."""

import contextlib
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from genenc_core import spec
from genenc_core.images.containers import arrays, kinds
from genenc_core.images.containers.container import NeverWritten
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode.decoded import ImageUnreadable


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_alpha_that_is_zero_everywhere_does_not_count(kind: str) -> None:
    white = 1.0 if kind == "float32" else np.iinfo(kind).max
    colours = np.array([[0.2, 0.4, 0.6], [1.0, 0.8, 0.0]])
    blank, half = (np.dstack([colours[None], np.full((1, 2), alpha)]) * white for alpha in (0.0, 1.0))
    half[0, 0, 3] = 0
    np.testing.assert_array_equal(arrays.rgb(blank.astype(kind)), np.rint(colours * 255)[None])
    np.testing.assert_array_equal(arrays.rgb(half.astype(kind)), [[[0, 0, 0], [255, 204, 0]]])


@pytest.mark.parametrize(
    ("rate", "per_second", "expected"),
    [
        (1000, 100, range(0, 60, 10)),
        (1000, 500, range(0, 60, 2)),
        (2000, 250, range(0, 60, 8)),
        (500, 100, range(0, 60, 5)),
        (30, 5, range(0, 60, 6)),
    ],
)
def test_the_first_frame_of_every_step(rate: int, per_second: int, expected: range) -> None:
    exact = [index / rate for index in range(60)]
    assert list(Frames.parse(f"{per_second}/s").of(60, exact)) == list(expected)


def test_times_that_a_format_rounds_move_no_frame() -> None:
    rounded = [round(index * 1000 / 30) / 1000 for index in range(60)]
    assert list(Frames.parse("10/s").of(60, rounded)) == list(range(0, 60, 3))


@pytest.mark.parametrize("attributes", [{"scale_factor": 1e-4}, {"add_offset": np.array([5.0])}])
def test_numbers_that_stand_for_others_are_refused(attributes: dict[str, object], tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", data=np.ones((2, 8, 8), np.uint16), attributes={})
    array.attrs.update({key: float(np.ravel(value)[0]) for key, value in attributes.items()})
    with pytest.raises(ImageUnreadable, match="its numbers stand for others"):
        kinds.open_container(str(tmp_path / "a.zarr"))
    ranged = spec.Channels(count=1, value_range=((0.0, 10000.0),))
    arrays.check_scale(attributes, ranged)
    arrays.check_scale({"scale_factor": 1, "add_offset": 0, "_FillValue": "AAA="}, None)


def test_a_frame_with_the_value_for_no_value_is_unreadable(tmp_path: Path) -> None:
    data = np.ones((2, 8, 8), np.uint8)
    data[1, 2, 3] = 255
    zarr.create_array(tmp_path / "a.zarr", data=data, attributes={"_FillValue": 255})
    opened = kinds.open_container(str(tmp_path / "a.zarr"))
    first, second = (member.at for member in opened.members(Frames()))
    assert opened.read(first).pixels is not None
    with pytest.raises(ImageUnreadable, match="1 of 64 values are 255, its _FillValue"):
        opened.read(second)


@pytest.mark.parametrize(
    ("names", "shape", "refused"),
    [
        (("time", "y", "x"), (4, 8, 9), False),
        (("time", "x", "y"), (4, 8, 9), True),
        (("band", "y", "x"), (3, 8, 9), True),
        (("time", "lat", "lon", "band"), (4, 8, 9, 3), False),
        (("time", "band", "y", "x"), (4, 3, 8, 9), False),
        (("a", "b", "c2"), (4, 8, 9), False),
        (("z", "y", "x"), (9, 8, 3), True),
        (("t", "z", "y", "x"), (4, 3, 8, 9), True),
    ],
)
def test_names_of_dimensions_must_agree(
    names: tuple[str, ...], shape: tuple[int, ...], refused: bool, tmp_path: Path
) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.ones(shape, np.uint8), dimension_names=names)
    with pytest.raises(ImageUnreadable, match="would be taken for") if refused else contextlib.nullcontext():
        kinds.open_container(str(tmp_path / "a.zarr"))


def test_a_hole_in_a_frame_is_warned_of(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.full((4, 8, 8), 200, np.uint8), chunks=(1, 4, 4))
    for chunk in ("c/0/0/1", "c/2/1/1"):
        (tmp_path / "a.zarr" / chunk).unlink()
    with pytest.warns(NeverWritten, match="2 of 4 frames"):
        list(kinds.open_container(str(tmp_path / "a.zarr")).members(Frames()))


@pytest.mark.parametrize(
    ("shape", "chunks", "shards", "where"),
    [
        ((4, 8, 8), (1, 4, 4), (4, 8, 8), "end"),
        ((5, 9, 8), (1, 4, 4), (2, 8, 4), "start"),
        ((6, 8, 8, 3), (2, 8, 4, 3), (4, 8, 8, 3), "end"),
        ((5, 3, 8, 8), (1, 1, 8, 8), (5, 3, 8, 8), "end"),
    ],
)
def test_holes_inside_shards_are_warned_of(
    shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...], where: str, tmp_path: Path
) -> None:
    sharding = zarr.codecs.ShardingCodec(chunk_shape=chunks, index_location=where)
    array = zarr.create(shape, chunk_shape=shards, codecs=[sharding], dtype="u1", store=tmp_path / "a.zarr")
    draw, written = np.random.default_rng(1), np.zeros(shape, bool)
    grid = [range(0, length, side) for length, side in zip(shape, chunks, strict=True)]
    for first in itertools.product(*grid):
        if first[0] and draw.random() < 0.8:  # the first frames are whole
            continue
        block = tuple(slice(at, at + side) for at, side in zip(first, chunks, strict=True))
        array[block], written[block] = 200, True
    holes = int((~written.reshape(shape[0], -1).all(1)).sum())
    assert 0 < holes < shape[0]
    opened = kinds.open_container(str(tmp_path / "a.zarr"))
    with pytest.warns(NeverWritten, match=f"{holes} of {shape[0]} frames"):
        list(opened.members(Frames()))
    array[...] = 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(opened.members(Frames()))


def test_shards_whose_index_says_nothing_are_taken_as_whole(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.full((4, 8, 8), 200, np.uint8), chunks=(1, 4, 4), shards=(4, 8, 8))
    (tmp_path / "a.zarr/c/0/0/0").write_bytes(b"cut")
    opened = kinds.open_container(str(tmp_path / "a.zarr"))
    (at, *_) = (member.at for member in opened.members(Frames()))
    with pytest.raises(ImageUnreadable, match="damaged Zarr"):
        opened.read(at)
