"""Check of a device's JPEG decoding against the CPU, on synthetic images, before it is used."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from genenc_core import errors, spec
from genenc_core.images.load import loader
from genenc_core.images.sources import image_source, manifest
from genenc_core.system import digests

MEAN, LARGEST = 1.0, 10
"""Allowed mean and largest difference from the CPU's pixels, in 8-bit steps, per image.

libjpeg with nearest-neighbour chroma upsampling, as in nvJPEG, instead of interpolation differs by 0.5 and 5 on these
images, whose colours change slowly. Shifted, swapped or rotated images differ by far more.
"""
_SIZES: Final = ((320, 240), (333, 251), (70, 497), (1024, 768))
_SAMPLINGS: Final[Mapping[str, int]] = {"444": 0, "422": 1, "420": 2}


def check(preprocessing: spec.Preprocessing, device: str) -> str:
    """Decode synthetic images as a run does; return a digest of the pixels that its model would see.

    Raises:
        InputError: the device does not decode them, its pixels differ from the CPU's, or two decodes differ.
        OSError: the device does not work.
    """
    with tempfile.TemporaryDirectory(prefix="genenc-") as folder:
        draw(Path(folder, "drawn"))
        listed = manifest.write_manifest(
            Path(folder, "images.parquet"), image_source.open_source(str(Path(folder, "drawn")))
        )
        names = listed.read(0, listed.rows).image_ids
        cpu_pixels = _pixels(listed, preprocessing.model_copy(update={"decode": "full"}), None, batch=len(names))
        gpu_pixels = _pixels(listed, preprocessing, device, batch=len(names))
        one_by_one = _pixels(listed, preprocessing, device, batch=1)
    _refuse_different(names, cpu_pixels, gpu_pixels, device)
    if not np.array_equal(gpu_pixels, one_by_one):
        raise errors.InputError(
            f"{device} decodes a JPEG to different pixels depending on its batch: remove --decode gpu"
        )
    return digests.PIXELS.hex(gpu_pixels.tobytes())


def draw(folder: Path) -> None:
    """Write JPEGs of every kind that a device decodes, with slowly varying colour and sharp brightness."""
    folder.mkdir()
    for width, height in _SIZES:
        picture = Image.fromarray(_picture(height, width))
        for quality in (60, 92):
            for name, sampling in _SAMPLINGS.items():
                picture.save(folder / f"{width}-{quality}-{name}.jpg", quality=quality, subsampling=sampling)
            picture.convert("L").save(folder / f"{width}-{quality}-grey.jpg", quality=quality)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", quality=92, exif=exif)
    picture.save(folder / "restarts.jpg", quality=92, restart_marker_blocks=7)


def _picture(height: int, width: int) -> np.ndarray:
    """Return uint8 `[H, W, 3]` with broad waves of colour, and edges and grain of brightness."""
    y, x = np.mgrid[:height, :width]
    colour = np.stack([np.sin(x / 61 + each) + np.cos(y / 53 + 2 * each) for each in range(3)], axis=2)
    edges = np.where((x // 23 + y // 17) % 2, 30, -30) * (x > width / 3)
    grain = np.random.default_rng(height).normal(0, 6, (height, width))
    picture: np.ndarray = np.clip(128 + 36 * colour + (edges + grain)[..., None], 0, 255).astype(np.uint8)
    return picture


def _pixels(
    listed: manifest.Manifest, preprocessing: spec.Preprocessing, device: str | None, *, batch: int
) -> np.ndarray:
    """Return the pixels of all rows, uint8 `[n, 3, H, W]`.

    Raises:
        InputError: some were not decoded, or not by the device.
    """
    images: np.ndarray = np.empty((listed.rows, 3, preprocessing.height, preprocessing.width), np.uint8)
    with loader.ImageLoader(listed, preprocessing, workers=1, batch=batch, device=device) as loaded:
        for loaded_batch in loaded.iter_batches(0, listed.rows):
            reasons = [each.reason for each in loaded_batch.unreadable]
            refused = int((~loaded_batch.on_gpu).sum()) if device else 0
            if reasons or refused:
                size = f"{preprocessing.height} x {preprocessing.width}"
                what = (
                    reasons[0]
                    if reasons
                    else f"{refused} of {len(loaded_batch)} are left to the CPU at the model's size, {size}"
                )
                raise errors.InputError(f"{device} does not decode synthetic JPEGs ({what}): remove --decode gpu")
            images[loaded_batch.rows] = np.concatenate([part.numpy() for part in loaded_batch.parts])
            loaded_batch.release()
    return images


def _refuse_different(names: Sequence[str], cpu_pixels: np.ndarray, gpu_pixels: np.ndarray, device: str) -> None:
    difference = np.abs(cpu_pixels.astype(np.int16) - gpu_pixels).reshape(len(names), -1)
    means, largest = difference.mean(axis=1), difference.max(axis=1)
    worst = int(np.argmax(np.maximum(means / MEAN, largest / LARGEST)))
    if means[worst] > MEAN or largest[worst] > LARGEST:
        raise errors.InputError(
            f"{device} decodes a synthetic JPEG ({names[worst]}) to pixels that differ from the CPU's by "
            f"{means[worst]:.2f} on average and {largest[worst]} at most, above the allowed {MEAN:g} and {LARGEST}: "
            "remove --decode gpu"
        )
