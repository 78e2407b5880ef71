"""What is cut off after a resize is not made, and what is made is bit for bit a part of the whole."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from genenc_core.images.decode import resize

SIDES = st.integers(1, 400)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Return the source's pixels, the resized ones, and how many of these are used."""
    source, whole = draw(SIDES), draw(SIDES)
    return source, whole, draw(st.integers(1, whole))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(axes(), axes(), st.sampled_from(["bilinear", "bicubic"]), st.booleans())
def test_a_part_is_bit_for_bit_that_of_the_whole(
    down: tuple[int, int, int], across: tuple[int, int, int], interpolation: resize.Interpolation, antialias: bool
) -> None:
    (height, rows, used_rows), (width, columns, used_columns) = down, across
    generator = torch.Generator().manual_seed(height * width)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
    size = (rows, columns)
    whole = resize.resize(pixels, resize.Target(size, size), interpolation=interpolation, antialias=antialias)
    target = resize.Target(size, (used_rows, used_columns))
    part = resize.resize(pixels, target, interpolation=interpolation, antialias=antialias)
    assert part.shape[1] >= used_rows
    assert part.shape[2] >= used_columns
    assert torch.equal(part, whole[:, : part.shape[1], : part.shape[2]])


def test_no_more_is_made_than_is_used() -> None:
    pixels = torch.zeros((375, 500, 3), dtype=torch.uint8).permute(2, 0, 1)
    target = resize.Target((256, 341), (240, 282))
    assert resize.resize(pixels, target, interpolation="bilinear", antialias=True).shape == (3, 240, 282)


def test_an_axis_of_which_less_than_half_is_used_is_made_whole() -> None:
    """Without the last pixels, which have the largest weight here, torch would take finer weights."""
    pixels = torch.randint(0, 256, (150, 349, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    size = (76, 175)
    whole, part = (
        resize.resize(pixels.permute(2, 0, 1), resize.Target(size, used), interpolation="bilinear", antialias=True)
        for used in (size, (16, 67))
    )
    assert torch.equal(part, whole)


def test_an_axis_that_keeps_its_pixels_is_made_whole_or_not_at_all() -> None:
    """torch would take both for an axis that needs no resize."""
    target = resize.Target((80, 100), (60, 70))
    assert resize.axes((80, 70), target) == ((80, None), (100, None))
    assert resize.axes((160, 200), target) == ((60, 0.5), (70, 0.5))


def scene(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).random((height, width, 3))
    values = {
        "noise": noise * 255,
        "black and white": (noise < 0.5) * 255,
        "checkerboard": np.repeat(((x + y) % 2 * 255)[..., None], 3, axis=2),
        "stripes": np.stack([x % 3 == 0, y % 3 == 0, x % 2 == 0], axis=2) * 255,
        "slopes": np.stack([x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 9 + y / 5)], axis=2),
    }
    return values[kind].astype(np.uint8)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    source=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    kind=st.sampled_from(["noise", "black and white", "checkerboard", "stripes", "slopes"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 99),
)
@example(source=(480, 640), size=(512, 512), kind="noise", interpolation="bicubic", seed=0)
@example(source=(420, 363), size=(179, 323), kind="black and white", interpolation="bicubic", seed=0)
@example(source=(789, 23), size=(737, 114), kind="black and white", interpolation="bicubic", seed=0)
@example(source=(2, 6), size=(19, 99), kind="slopes", interpolation="bilinear", seed=0)
def test_the_stated_bound_holds(
    source: tuple[int, int], size: tuple[int, int], kind: str, interpolation: resize.Interpolation, seed: int
) -> None:
    """Pillow's first pass is asked for by itself: from version 13 it takes the cheaper order of the two."""
    image = scene(kind, *source, seed)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    target = resize.Target(size, size)
    found = resize.resize(pixels, target, interpolation=interpolation, antialias=True).permute(1, 2, 0).numpy()
    method = Image.Resampling[interpolation.upper()]
    across = Image.fromarray(image).resize((size[1], source[0]), method)
    expected = np.asarray(across.resize((size[1], size[0]), method))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2
