"""What the model sees is what its own evaluation transform, run on Pillow's image, would show it."""

import io

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config

from genenc_core import spec
from genenc_core.images.decode import decode, geometry
from genenc_core.models import resolve

SIZES = [(500, 375), (375, 500), (777, 333), (1024, 768), (240, 180), (225, 224)]
MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 0.02, 2
"""In units of 1/255; found: 0.016, and 1 (bicubic: 2). Pillow and torch round the filters' weights to other bits."""


def picture(width: int, height: int, seed: int) -> bytes:
    """Return a drawn JPEG with edges, slopes and noise: what a wrong filter or a shifted crop would change."""
    rng = np.random.default_rng(seed)
    x, y = np.arange(width), np.arange(height)[:, None]
    scene = (
        128 + 60 * np.sin(x / 9.7) + 50 * np.sign(np.sin((x + 2 * y) / 23)) + 8 * rng.standard_normal((height, width))
    )
    rgb = np.stack([scene, 255 - scene, np.roll(scene, 7, axis=1)], axis=-1).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def seen(data: bytes, preprocessing: spec.Preprocessing) -> torch.Tensor:
    """Return genenc's model input, uint8."""
    decoded = decode.decode_image(data)
    return geometry.apply_fit(decoded.pixels, geometry.plan_fit(*decoded.size, preprocessing), preprocessing)


def assert_same(found: torch.Tensor, reference: torch.Tensor, built: resolve.BuiltEncoder) -> None:
    """Compare with a normalised reference in units of 1/255."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (built.mean, built.std))
    difference = (found.float() - 255 * (reference * std + mean)).abs()
    assert difference.mean() < MEAN_DIFFERENCE
    assert difference.max() < LARGEST_DIFFERENCE + 1e-3


@pytest.fixture(scope="module")
def mobile() -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name="mobilenet_v3_small", weights="random:0"))


@pytest.mark.slow
def test_a_torchvision_model_sees_its_weights_transform(mobile: resolve.BuiltEncoder) -> None:
    transform = torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT.transforms()
    assert mobile.preprocessing.interpolation == "bilinear"
    for seed, (width, height) in enumerate(SIZES):
        data = picture(width, height, seed)
        assert_same(seen(data, mobile.preprocessing), transform(Image.open(io.BytesIO(data))), mobile)


@pytest.mark.slow
def test_a_timm_model_sees_timms_transform() -> None:
    built = resolve.build_encoder(resolve.ModelRequest(name="timm/mobilenetv3_small_050", weights="random:0"))
    config = timm.get_pretrained_cfg("mobilenetv3_small_050").to_dict()
    transform = create_transform(**resolve_data_config(config), is_training=False)
    assert built.preprocessing.interpolation == "bicubic"
    for seed, (width, height) in enumerate(SIZES):
        data = picture(width, height, seed)
        assert_same(seen(data, built.preprocessing), transform(Image.open(io.BytesIO(data))), built)


@pytest.mark.parametrize("change", [{"antialias": False}, {"interpolation": "bicubic"}, {"resize_short": 250}], ids=str)
def test_another_transform_is_noticed(mobile: resolve.BuiltEncoder, change: dict[str, object]) -> None:
    transform = torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT.transforms()
    data = picture(500, 375, 0)
    other = mobile.preprocessing.model_copy(update=change)
    with pytest.raises(AssertionError):
        assert_same(seen(data, other), transform(Image.open(io.BytesIO(data))), mobile)
