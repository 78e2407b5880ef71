"""What is cut off after a resize is not made, and what is made is bit for bit a part of the whole."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genenc_core.images import resizing

SIDES = st.integers(1, 400)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Return the source's pixels, the resized ones, and how many of these are used."""
    source, whole = draw(SIDES), draw(SIDES)
    return source, whole, draw(st.integers(1, whole))


@settings(max_examples=300, deadline=None)
@given(axes(), axes(), st.sampled_from(["bilinear", "bicubic"]), st.booleans())
def test_a_part_is_bit_for_bit_that_of_the_whole(
    down: tuple[int, int, int], across: tuple[int, int, int], interpolation: resizing.Interpolation, antialias: bool
) -> None:
    (height, rows, used_rows), (width, columns, used_columns) = down, across
    generator = torch.Generator().manual_seed(height * width)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
    size = (rows, columns)
    whole = resizing.resize(pixels, resizing.Target(size, size), interpolation=interpolation, antialias=antialias)
    target = resizing.Target(size, (used_rows, used_columns))
    part = resizing.resize(pixels, target, interpolation=interpolation, antialias=antialias)
    assert part.shape[1] >= used_rows
    assert part.shape[2] >= used_columns
    assert torch.equal(part, whole[:, : part.shape[1], : part.shape[2]])


def test_no_more_is_made_than_is_used() -> None:
    pixels = torch.zeros((375, 500, 3), dtype=torch.uint8).permute(2, 0, 1)
    target = resizing.Target((256, 341), (240, 282))
    assert resizing.resize(pixels, target, interpolation="bilinear", antialias=True).shape == (3, 240, 282)


def test_an_axis_of_which_less_than_half_is_used_is_made_whole() -> None:
    """Without the last pixels, which have the largest weight here, torch would take finer weights."""
    pixels = torch.randint(0, 256, (150, 349, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    size = (76, 175)
    whole, part = (
        resizing.resize(pixels.permute(2, 0, 1), resizing.Target(size, used), interpolation="bilinear", antialias=True)
        for used in (size, (16, 67))
    )
    assert torch.equal(part, whole)


def test_an_axis_that_keeps_its_pixels_is_made_whole_or_not_at_all() -> None:
    """torch would take both for an axis that needs no resize."""
    target = resizing.Target((80, 100), (60, 70))
    assert resizing.axes((80, 70), target) == ((80, None), (100, None))
    assert resizing.axes((160, 200), target) == ((60, 0.5), (70, 0.5))
