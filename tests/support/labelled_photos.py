"""Drawn images of two sizes with labels, and the parameters of a small run of them."""

from pathlib import Path
from typing import Any

import numpy as np

import pictures

SIZES = ((80, 60), (50, 70))
"""Width and height of the images, in turn."""
MODEL: dict[str, Any] = {
    "model": "tiny_models:conv",
    "weights": "random:0",
    "image_size": "32",
    "fit": "pad",
    "shard_rows": 4,
    "batch_size": 3,
    "device": "cpu",
    "decode_workers": 1,
    "trust": True,
}
"""A tiny model, 4 images a shard, 3 a batch."""


def write_photos(folder: Path) -> Path:
    """Write 11 PNG images."""
    return pictures.write_folder(folder, 11, sizes=SIZES)


def write_labels(path: Path) -> Path:
    """Write a points file: two points in most images, some missing, outside the image, or at its far corner."""
    drawn = np.random.default_rng(7)
    lines = ["image,point,x,y"]
    for index in range(10):
        width, height = SIZES[index % 2]
        for point in ("nose", "tail"):
            x, y = drawn.uniform(0, 1, 2) * (width, height)
            if (index, point) == (3, "tail"):
                continue
            if (index, point) == (4, "nose"):
                x, y = width + 3, 5
            if (index, point) == (5, "nose"):
                x, y = width, height
            lines.append(f"img_{index:03d}.png,{point},{x:.2f},{y:.2f}")
    path.write_text("\n".join(lines) + "\n")
    return path


def parameters(folder: Path, images: Path, out: str, /, *products: str, **changes: Any) -> dict[str, Any]:
    """Return what `api.extract` is given to extract images to a name in a folder, or to a place on S3."""
    place = out if "://" in out else str(folder / out)
    return {"images": str(images), "out": place, "products": products, **MODEL, **changes}
