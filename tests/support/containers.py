"""Files with images inside, each written by the library of its format."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tifffile
import zarr
from PIL import Image
from pyarrow import parquet

import sleap_files

Frames = Sequence[np.ndarray]
"""uint8 `[H, W, 3]` each, of one size."""


def frames(count: int = 5, height: int = 24, width: int = 32) -> list[np.ndarray]:
    """Return frames of random pixels."""
    return list(np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8))


def png(frame: np.ndarray) -> bytes:
    """Return a frame as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(folder: Path, shown: Frames, *, more: Mapping[str, bytes] | None = None) -> Path:
    """Write an archive of `n/000.png` and so on, then `more` files."""
    path = folder / "images.tar"
    with tarfile.open(path, "w") as archive:
        files = {**{f"n/{at:03}.png": png(frame) for at, frame in enumerate(shown)}, **(more or {})}
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_npy(folder: Path, shown: Frames) -> Path:
    """Write `[N, H, W, 3]`."""
    np.save(folder / "stack.npy", np.stack(shown))
    return folder / "stack.npy"


def write_tiff(folder: Path, shown: Frames) -> Path:
    """Write a page per frame."""
    tifffile.imwrite(folder / "stack.tif", np.stack(shown), photometric="rgb")
    return folder / "stack.tif"


def write_hdf5(folder: Path, shown: Frames) -> Path:
    """Write a dataset of compressed chunks beside one that is no stack."""
    import h5py

    with h5py.File(folder / "stack.h5", "w") as file:
        file.create_dataset("group/frames", data=np.stack(shown), chunks=(1, *shown[0].shape), compression="gzip")
        file["times"] = np.arange(len(shown), dtype=np.float64)
    return folder / "stack.h5"


def write_slp(folder: Path, shown: Frames) -> Path:
    """Write a package with the frames of a video inside."""
    path = sleap_files.write_slp(folder / "labels.pkg.slp", {})
    return sleap_files.embed(path, {at * 3: png(frame) for at, frame in enumerate(shown)})


def write_zarr(folder: Path, shown: Frames, *, version: int = 3) -> Path:
    """Write chunks of two frames."""
    path, values = folder / "stack.zarr", np.stack(shown)
    chunks = (2, *shown[0].shape)
    array: Any = zarr.create_array(
        str(path), shape=values.shape, chunks=chunks, dtype=values.dtype, zarr_format=2 if version == 2 else 3
    )
    array[:] = values
    return path


def write_parquet(folder: Path, shown: Frames) -> Path:
    """Write a table as the datasets of Hugging Face have it."""
    cells = [{"bytes": png(frame), "path": f"{at:03}.png"} for at, frame in enumerate(shown)]
    table = pa.table({"image": cells, "label": list(range(len(shown)))})
    parquet.write_table(table, folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def write_video(folder: Path, shown: Frames, *, codec: str = "ffv1", name: str = "clip.mkv", **options: Any) -> Path:
    """Write a video; FFV1 keeps the pixels as they are."""
    import av

    path = folder / name
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=30, options=options)
        stream.height, stream.width = shown[0].shape[:2]
        stream.pix_fmt = {"ffv1": "bgr0", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for frame in shown:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


WRITERS: Mapping[str, Callable[[Path, Frames], Path]] = {
    "tar": write_tar,
    "npy": write_npy,
    "tiff": write_tiff,
    "hdf5": write_hdf5,
    "slp": write_slp,
    "zarr": write_zarr,
    "parquet": write_parquet,
    "video": write_video,
}
NEEDS = {"hdf5": "h5py", "slp": "h5py", "video": "av"}
"""Packages that are not always installed."""
