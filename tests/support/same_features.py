"""Images and weights that genenc and another tool both get, and how far their features are apart."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import pictures

SIZES = ((300, 260), (233, 400), (97, 81))
"""(width, height); one is smaller than models' inputs, and some sides are odd."""


def write_photos(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Path]:
    """Write one image of each size, with noise of single pixels, PNG but the first, which is JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for at, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(at).integers(-60, 61, (height, width, 3))
        pixels = np.clip(pictures.texture(width, height, at) + noise, 0, 255).astype(np.uint8)
        path = folder / f"{at:03d}.{'png' if at else 'jpg'}"
        Image.fromarray(pixels).save(path)
        made.append(path)
    return made


def seeded(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Make a model of seeded random weights, save its state dict, and return it in evaluation mode."""
    torch.manual_seed(7)
    model = make().eval()
    generator = torch.Generator().manual_seed(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.num_features, generator=generator)
            module.running_var = 1 + 0.1 * torch.rand(module.num_features, generator=generator)
    torch.save(model.state_dict(), path)
    return model


def difference(ours: np.ndarray, theirs: np.ndarray | torch.Tensor) -> float:
    """Return the largest distance of two vectors (of an image, or a cell), relative to the length of theirs."""
    expected = np.asarray(theirs, dtype=np.float64)
    assert ours.shape == expected.shape
    assert expected.std(axis=0).max() > 0.01 * expected.std(), "images have the same features"
    apart, length = (np.linalg.norm(values, axis=1) for values in (ours - expected, expected))
    return float((apart / length).max())
