"""Synthetic photograph-like JPEG files from a seed: 1/f noise and edges, with realistic file sizes."""

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375
QUALITY = 90
DISTINCT = 64


def draw(folder: Path, count: int, *, width: int = WIDTH, height: int = HEIGHT, broken_every: int = 0) -> Path:
    """Write `count` JPEG files (4:2:0, quality 90; 500 x 375 gives about 90 kB) and return their folder.

    The contents repeat after 64 files. With `broken_every=n`, every n-th file is truncated to half its bytes.
    """
    folder.mkdir(parents=True)
    for index in range(count):
        data = _jpeg(width, height, index % DISTINCT)
        broken = broken_every and index % broken_every == broken_every - 1
        (folder / f"{index:06d}.jpg").write_bytes(data[: len(data) // 2] if broken else data)
    return folder


@functools.lru_cache(maxsize=4 * DISTINCT)
def _jpeg(width: int, height: int, seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph(width, height, seed)).save(file, "jpeg", quality=QUALITY)
    return file.getvalue()


def photograph(width: int, height: int, seed: int) -> np.ndarray:
    """Return 1/f noise with edges: uint8 [height, width, 3]."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0 / max(width, height)
    base = _noise(generator, frequency**1.1, (height, width))
    tint = np.stack([_noise(generator, frequency**1.4, (height, width)) for _ in range(3)], axis=-1)
    pixels = 128 + 38 * base[..., None] + 16 * tint
    rows, columns = np.mgrid[0:height, 0:width]
    for _ in range(6):
        angle, shift, step = generator.uniform(0, np.pi), generator.uniform(0.2, 0.8), generator.uniform(-45, 45)
        side = (columns / width - shift) * np.cos(angle) + (rows / height - shift) * np.sin(angle) > 0
        pixels += step * side[..., None]
    pixels += generator.normal(0, 4.0, size=(height, width, 1))
    drawn: np.ndarray = pixels.clip(0, 255).astype(np.uint8)
    return drawn


def _noise(generator: np.random.Generator, frequency: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    waves = generator.normal(size=frequency.shape) + 1j * generator.normal(size=frequency.shape)
    noise = np.fft.irfft2(waves / frequency, s=shape)
    normalised: np.ndarray = (noise - noise.mean()) / noise.std()
    return normalised
