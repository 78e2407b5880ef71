"""Image files for tests, drawn from a seed."""

import functools
import io
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def texture(width: int, height: int, seed: int) -> np.ndarray:
    """Return a smooth random RGB image, uint8 [height, width, 3]."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, size=(9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def ramp(width: int, height: int) -> np.ndarray:
    """Return an RGB image whose red is x / width and green y / height at each pixel's centre, uint8."""
    x = (np.arange(width) + 0.5) / width
    y = (np.arange(height) + 0.5) / height
    red, green = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    return np.round(255 * np.stack([red, green, np.full((height, width), 0.5)], axis=-1)).astype(np.uint8)


def write_folder(folder: Path, count: int, *, seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((80, 60),)) -> Path:
    """Write `count` textured PNG files named img_000.png onward, sizes (width, height) in turn; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        width, height = sizes[index % len(sizes)]
        (folder / f"img_{index:03d}.png").write_bytes(_png(width, height, seed + index))
    return folder


def write_channels(folder: Path, count: int, *, channels: int, ome: bool = False) -> Path:
    """Write `count` TIFFs of channels, uint16 up to 10,000, planar or as pages of OME-TIFFs; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        planes = [texture(80, 60, 100 * index + channel)[..., 0] for channel in range(channels)]
        values = np.stack(planes).astype(np.uint16) * 39
        options = {"ome": True, "metadata": {"axes": "CYX"}} if ome else {"planarconfig": "separate", "metadata": None}
        name = f"{index:03d}.{'ome.tif' if ome else 'tif'}"
        tifffile.imwrite(folder / name, values, photometric="minisblack", **options)
    return folder


@functools.cache
def _png(width: int, height: int, seed: int) -> bytes:
    """Return a textured image as a file; hundreds of tests ask for the same few."""
    file = io.BytesIO()
    Image.fromarray(texture(width, height, seed)).save(file, "PNG")
    return file.getvalue()
