"""Channels by name: as OME-TIFF, ImageJ, GDAL, OME-Zarr, Zarr and HDF5 state them, in each file's own order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from genenc_core import errors, spec
from genenc_core.images.containers import kinds
from genenc_core.images.decode import channels
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.run import channels as run_channels

NAMES = ("DNA", "ER", "AGP")
VALUES = np.arange(3 * 8 * 9, dtype=np.uint8).reshape(3, 8, 9)


def wanted(*names: str) -> spec.Channels:
    return spec.Channels(count=len(names), names=names)


def ome(path: Path, names: tuple[str, ...] = NAMES, **more: Any) -> Path:
    tifffile.imwrite(path, VALUES, ome=True, metadata={"axes": "CYX", "Channel": {"Name": list(names)}}, **more)
    return path


def imagej(path: Path) -> Path:
    tifffile.imwrite(path, VALUES, imagej=True, metadata={"axes": "CYX", "Labels": list(NAMES)})
    return path


def gdal(path: Path) -> Path:
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{at}" role="description">{name}</Item>' for at, name in enumerate(NAMES)
    )
    text = f"<GDALMetadata>{items}<Item name='AREA'>x</Item></GDALMetadata>"
    tags = [(42112, 2, 0, text, True)]
    tifffile.imwrite(path, VALUES, planarconfig="separate", photometric="minisblack", metadata=None, extratags=tags)
    return path


@pytest.mark.parametrize("write", [ome, imagej, gdal])
def test_tiffs(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    data = write(tmp_path / "a.tif").read_bytes()
    assert channels.count_of(data) == (3, NAMES)
    found = channels.decode_channels(data, wanted("agp", "DNA"))
    np.testing.assert_allclose(found.pixels.numpy() * 255, VALUES[[2, 0]], atol=1e-4)
    with pytest.raises(ImageUnreadable, match="there is no channel 'GFP': the file has DNA, ER, AGP"):
        channels.decode_channels(data, wanted("GFP"))


def test_stacks_of_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    frames = np.stack([VALUES, VALUES[::-1]])
    tifffile.imwrite(path, frames, ome=True, metadata={"axes": "TCYX", "Channel": {"Name": list(NAMES)}})
    opened = kinds.open_container(str(path), wanted("ER"))
    samples = opened.read("1").samples
    assert samples is not None
    assert samples.names == NAMES


@pytest.mark.parametrize("form", [2, 3])
def test_ome_zarr(tmp_path: Path, form: Any) -> None:
    labels = {"channels": [{"label": name, "color": "FFFFFF"} for name in NAMES]}
    axes = [{"name": name} for name in "cyx"]
    stated: dict[str, Any] = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}], "omero": labels}
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=form)
    group.attrs.update(stated if form == 2 else {"ome": stated})
    group.create_array("0", data=VALUES)
    _assert_named(str(tmp_path / "a.zarr"), (VALUES, "0"))


def test_coordinates_of_zarr(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.create_array("images", data=VALUES[None], dimension_names=("time", "band", "y", "x"))
    group.create_array("band", data=np.array(NAMES, dtype="U3"), dimension_names=("band",))
    _assert_named(str(tmp_path / "a.zarr" / "images"), (VALUES, "0"))


def test_scales_of_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("images", data=VALUES[None])
        scale = file.create_dataset("band", data=list(NAMES), dtype=h5py.string_dtype())
        scale.make_scale("band")
        data.dims[1].attach_scale(scale)
    _assert_named(str(tmp_path / "a.h5" / "images"), (VALUES, "0"))


def _assert_named(path: str, expected: tuple[np.ndarray, str]) -> None:
    opened = kinds.open_container(path, wanted("ER", "DNA"))
    try:
        samples = opened.read(expected[1]).samples
    finally:
        opened.close()
    assert samples is not None
    assert samples.names == NAMES
    found = channels.selected(samples, wanted("ER", "DNA"))
    np.testing.assert_allclose(found.pixels.numpy() * 255, expected[0][[1, 0]], atol=1e-4)


def test_files_without_names_and_of_equal_ones(tmp_path: Path) -> None:
    plain = tmp_path / "a.tif"
    tifffile.imwrite(plain, VALUES, photometric="minisblack", metadata=None)
    with pytest.raises(ImageUnreadable, match=r"names none of its channels, of which it has 3: .* --channels 0,1"):
        channels.decode_channels(plain.read_bytes(), wanted("ER", "DNA"))
    twice = ome(tmp_path / "b.tif", ("ER", "er", "ER")).read_bytes()
    with pytest.raises(ImageUnreadable, match="2 channels of the file are named 'ER', 0 and 2"):
        channels.decode_channels(twice, wanted("ER"))
    np.testing.assert_allclose(channels.decode_channels(twice, wanted("er")).pixels[0] * 255, VALUES[1], atol=1e-4)
    damaged = ome(tmp_path / "c.tif").read_bytes().replace(b"</OME>", b"</OMX>")
    with pytest.raises(ImageUnreadable, match=r"damaged|names none"):
        channels.decode_channels(damaged, wanted("ER"))


def test_the_option() -> None:
    assert run_channels.parse_names("DAPI, GFP") == ("DAPI", "GFP")
    assert run_channels.parse_names("3,2,0:2") is None
    assert run_channels.parse_names("name:405,488") == ("405", "488")
    with pytest.raises(errors.InputError, match="or names as the files state them"):
        run_channels.parse_names("DAPI,,GFP")
    plain, named = spec.Channels(count=2, chosen=(1, 0)), wanted("DNA", "ER")
    assert "names" not in plain.model_dump(mode="json")
    assert spec.Channels.model_validate_json(named.model_dump_json()) == named
    assert named.describe() == "channels DNA, ER"
