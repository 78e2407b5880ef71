"""Image bytes drawn for the tests: no file of any data set is needed."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A smooth, asymmetric RGB scene with some grain, uint8 [45, 60, 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:45, 0:60].astype(float)
    scene = np.stack([x * 4, y * 5, 128 + 60 * np.sin(x / 7) + 40 * np.cos(y / 5)], axis=-1)
    return np.clip(scene + rng.normal(size=scene.shape) * 3, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Return a function: (Pillow image, format, **save options) -> bytes."""

    def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return encoded


@pytest.fixture(scope="session")
def png16() -> Callable[..., bytes]:
    """Return a function: (uint16 [H, W, C], extra chunks) -> a 16-bit PNG of 1, 2, 3 or 4 channels."""

    def encoded(values: np.ndarray, extra: bytes = b"") -> bytes:
        height, width, channels = values.shape
        kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
        lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")

    return encoded


@pytest.fixture(scope="session")
def png_chunk() -> Callable[[bytes, bytes], bytes]:
    """Return a function: (name, body) -> a PNG chunk with its checksum."""
    return _chunk


@pytest.fixture
def folder(tmp_path: Path, photo: np.ndarray) -> Path:
    """A folder of 12 readable images of several sizes: images/a00.png ... and images/sub/b00.jpg ..."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for index in range(6):
        Image.fromarray(photo[: 20 + index]).save(root / f"a{index:02}.png")
        Image.fromarray(photo[:, : 30 + index]).save(root / "sub" / f"b{index:02}.jpg", quality=90)
    return root
